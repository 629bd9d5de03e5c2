"""The model that is evaluated: its weights and tokenizer, from wherever they lie, and a fingerprint of both."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rcjax.model import LlamaConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh

_PIECE = 1 << 24  # values of a parameter that are hashed at a time


@dataclasses.dataclass(frozen=True)
class EvaluatedModel:
    """A model ready to write programs.

    Attributes:
      name: as the user gave it.
      config: its shape.
      params: the plain parameter dict, on the host or on whatever devices it lies.
      tokenizer: the fast tokenizer that belongs to it.
      fingerprint: SHA-256 of shape, tokenizer and every parameter.
      eos_ids: tokens that end its turns.
      step: optimizer steps, for a checkpoint of ours.
    """

    name: str
    config: LlamaConfig
    params: Mapping[str, Any]
    tokenizer: Any
    fingerprint: str
    eos_ids: tuple[int, ...] = ()
    step: int | None = None

    def describe(self) -> dict[str, Any]:
        """What results say about it."""
        described = {"name": self.name, "fingerprint": self.fingerprint, "parameters": self.config.num_params}
        return described | ({} if self.step is None else {"step": self.step})


def make_model(
    name: str, config: LlamaConfig, params: Mapping[str, Any], tokenizer: Any, step: int | None = None
) -> EvaluatedModel:
    """A model from its parts, for example from a checkpoint of a run."""
    return EvaluatedModel(
        name, config, params, tokenizer, fingerprint(config, params, tokenizer), _eos_ids(config), step
    )


def open_model(source: str, mesh: Mesh | None = None) -> EvaluatedModel:
    """A model in the Hugging Face form.

    Args:
      source: directory or Hub id.
      mesh: over which the parameters are split; None: one device.

    Raises:
      HubError, ModelLoadError, ModelConfigError, TokenizerError: it is not there, or can not be read.
    """
    from rcjax.hf.hub import model_directory
    from rcjax.hf.load import load_config, load_model, load_params
    from rcjax.hf.tokenizer import load_tokenizer
    from rcjax.train.state import param_shardings

    directory = model_directory(source)
    tokenizer = load_tokenizer(directory, load_config(directory).vocab_size)
    if mesh is None or mesh.size == 1:
        config, params = load_model(directory)
    else:
        config = dataclasses.replace(load_config(directory), vocab_multiple=128)  # so that a mesh divides the tables
        params = load_params(directory, config, param_shardings(config, mesh))
    model = make_model(source, config, params, tokenizer)
    return dataclasses.replace(model, eos_ids=tuple({*model.eos_ids, *_generation_eos(directory)}))


def fingerprint(config: LlamaConfig, params: Mapping[str, Any], tokenizer: Any) -> str:
    """SHA-256 of a model: of its shape, its tokenizer, and name and values of every parameter.

    Values are taken in float32, tables without their padding: it is the same however the model was loaded.
    """
    import jax
    import numpy as np

    digest = hashlib.sha256()
    digest.update(json.dumps(config.to_hf(), sort_keys=True, default=str).encode())
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        values = np.asarray(leaf)
        if name == "embed/embedding":  # [V, D]
            values = values[: config.vocab_size]
        elif name == "head/kernel":  # [D, V]
            values = values[:, : config.vocab_size]
        digest.update(f"{name} {values.shape}".encode())
        flat = values.reshape(-1)
        for start in range(0, len(flat), _PIECE):
            digest.update(np.ascontiguousarray(flat[start : start + _PIECE], np.float32).data)
    return digest.hexdigest()


def _eos_ids(config: LlamaConfig) -> tuple[int, ...]:
    eos = config.eos_token_id
    return () if eos is None else eos if isinstance(eos, tuple) else (eos,)


def _generation_eos(directory: Path) -> tuple[int, ...]:
    """Further end tokens of ``generation_config.json``: chat models end a turn by one that config.json lacks."""
    from rcjax.hf.safetensors_reader import read_json

    path = directory / "generation_config.json"
    eos = read_json(path).get("eos_token_id") if path.exists() else None
    return () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
