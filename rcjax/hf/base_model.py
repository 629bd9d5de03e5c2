"""What training starts from: a checkpoint of the Hugging Face world, or only a shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from rcjax.blocks import TextCodec
from rcjax.hf.convert import tensor_specs
from rcjax.hf.hub import model_directory
from rcjax.hf.load import check_tensors, check_vocabulary, load_config, load_params
from rcjax.hf.tokenizer import load_tokenizer
from rcjax.hf.vocabulary import VocabularyPlan, add_block_tokens
from rcjax.model import LlamaConfig
from rcjax.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DTYPES = ("float32", "bfloat16", "float16")
REQUIRED = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")
# Entries of config.model that are not fields of the shape, or that something else decides.
NOT_SHAPE = ("init", "vocab_multiple", "vocab_size")


class BaseModelError(ValueError):
    """A start that does not fit the configuration; the message names the field."""


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """A checkpoint to start from.

    Attributes:
      source: directory or Hub id, as the user gave it.
      directory: where its files lie.
      config: its own shape, of its own vocabulary.
      tokenizer: with the block tokens.
      vocabulary: how the tables follow.
    """

    source: str
    directory: Path
    config: LlamaConfig
    tokenizer: PreTrainedTokenizerFast
    vocabulary: VocabularyPlan

    def load(self, config: LlamaConfig, shardings: Any) -> dict[str, Any]:
        """float32 parameters of the model ``config``, each device reading its part (``load.load_params``)."""
        with progress(f"import {self.source}", total=len(tensor_specs(config)), unit="tensors") as bar:
            return load_params(
                self.directory,
                config,
                shardings,
                vocabulary=self.vocabulary,
                on_advance=bar.advance,
            )


def open_base_model(settings: ConfigDict, tokenizer_path: str = "") -> BaseModel:
    """Finds the checkpoint ``settings.init`` and checks, before anything is read, that it can be imported.

    Args:
      settings: ``config.model``.
      tokenizer_path: directory or Hub id of the tokenizer; empty: the checkpoint's.

    Raises:
      BaseModelError: a field of ``config.model`` is another than the checkpoint's.
      ValueError: see ``hub.model_directory``, ``load.check_tensors``, ``tokenizer.load_tokenizer``.
    """
    directory = model_directory(settings.init)
    config = load_config(directory)
    given = shape_fields(settings)
    stated = dataclasses.replace(config, **given)
    for field in given:
        if getattr(stated, field) != getattr(config, field):
            raise BaseModelError(
                f"config.model.{field} is {given[field]!r}, but the checkpoint {settings.init} has "
                f"{getattr(config, field)!r}; leave the field out or name another config.model.init"
            )
    check_tensors(directory, config)
    source = model_directory(tokenizer_path, weights=False) if tokenizer_path else directory
    tokenizer, vocabulary = add_block_tokens(
        load_tokenizer(source, config.vocab_size), bos_token_id=config.bos_token_id
    )
    check_vocabulary(directory, config.vocab_size, vocabulary)
    return BaseModel(settings.init, directory, config, tokenizer, vocabulary)


@dataclasses.dataclass(frozen=True)
class FrozenTeacher:
    """Another network that teaches, and stays as it is.

    Attributes:
      source: directory or Hub id, as the user gave it.
      directory: where its files lie.
      config: its shape, with the student's vocabulary.
      vocabulary: how its tables follow, should it lack the block tokens.
      dtype: of its parameters.
    """

    source: str
    directory: Path
    config: LlamaConfig
    vocabulary: VocabularyPlan
    dtype: str

    def load(self, shardings: Any) -> dict[str, Any]:
        """Its parameters, each device reading its part."""
        with progress(f"import teacher {self.source}", total=len(tensor_specs(self.config)), unit="tensors") as bar:
            return load_params(
                self.directory,
                self.config,
                shardings,
                jnp.dtype(self.dtype),
                vocabulary=self.vocabulary,
                on_advance=bar.advance,
            )


def open_teacher(settings: ConfigDict, student: LlamaConfig, tokenizer: PreTrainedTokenizerFast) -> FrozenTeacher:
    """Finds the checkpoint ``settings.model`` and checks that it speaks the student's vocabulary.

    Args:
      settings: ``config.teacher``.
      tokenizer: the run's.

    Raises:
      BaseModelError: no checkpoint is named, an unknown dtype, or another vocabulary (the first difference is named).
    """
    if not settings.model:
        raise BaseModelError("config.teacher.name is 'frozen'; name its directory or Hub id with config.teacher.model")
    if settings.dtype not in DTYPES:
        raise BaseModelError(f"config.teacher.dtype is {settings.dtype!r}; expected one of {', '.join(DTYPES)}")
    directory = model_directory(settings.model)
    config = load_config(directory)
    check_tensors(directory, config)
    theirs, vocabulary = add_block_tokens(
        load_tokenizer(directory, config.vocab_size), bos_token_id=config.bos_token_id
    )
    mine, other = ({i: t for t, i in words.get_vocab().items()} for words in (tokenizer, theirs))
    for number in sorted(mine.keys() | other.keys()):
        if mine.get(number) != other.get(number):
            raise BaseModelError(
                f"config.teacher.model={settings.model} has another vocabulary: token {number} is "
                f"{other.get(number)!r} there and {mine.get(number)!r} in this run; name one of the same tokenizer"
            )
    config = dataclasses.replace(config, vocab_size=student.vocab_size, vocab_multiple=student.vocab_multiple)
    return FrozenTeacher(settings.model, directory, config, vocabulary, settings.dtype)


def shape_fields(settings: ConfigDict) -> dict[str, Any]:
    """The fields of ``config.model`` that are given and that decide the shape, as arguments of ``LlamaConfig``."""
    fields = {}
    for name in settings:
        value = settings[name]
        if name not in NOT_SHAPE and value is not None:
            fields[name] = value.to_dict() if isinstance(value, ConfigDict) else value
    return fields


def model_config(settings: ConfigDict, codec: TextCodec, base: BaseModel | None = None) -> LlamaConfig:
    """The model to train: the checkpoint's shape or that of ``config.model``, with the tokenizer's vocabulary.

    Raises:
      BaseModelError: from scratch, and a field of the shape is missing.
    """
    vocabulary = dict(
        vocab_size=codec.vocab_size,
        vocab_multiple=settings.vocab_multiple,
        bos_token_id=codec.bos_id,
        eos_token_id=codec.eos_id,
        pad_token_id=codec.pad_id,
    )
    return shape_of(settings, vocabulary, base)


def shape_of(settings: ConfigDict, vocabulary: Mapping[str, Any], base: BaseModel | None = None) -> LlamaConfig:
    """The checkpoint's shape or that of ``config.model``, with fields of another vocabulary.

    Raises:
      BaseModelError: from scratch, and a field of the shape is missing.
    """
    if base is not None:
        return dataclasses.replace(base.config, **vocabulary)
    given = shape_fields(settings)
    missing = [name for name in REQUIRED if name not in given]
    if missing:
        raise BaseModelError(
            f"config.model.{missing[0]} is not set; state the shape, or what to start from with config.model.init"
        )
    return LlamaConfig(**given, **vocabulary)
