"""A trained model as a Hugging Face directory, which is read again and compared before it gets its name.

The model is never on one host as a whole. Twice its tensors come to process 0, one at a time: to be written, and to be
compared with what was written while both run a probe prompt, a layer at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from rcjax.blocks import END_OF_MESSAGE, Block, BlockType, Message, TextCodec, encode_prompt
from rcjax.distributed import leads, tell, together
from rcjax.hf.convert import tensor_specs
from rcjax.hf.directory import whole_directory
from rcjax.hf.gather import gather_tensor
from rcjax.hf.load import load_config
from rcjax.hf.model_card import model_card
from rcjax.hf.proof import Proof, ProofError, locate_tensors, to_layout
from rcjax.hf.safetensors_reader import INDEX, WEIGHTS
from rcjax.hf.safetensors_writer import SafetensorsWriter
from rcjax.hf.tokenizer import codec, load_tokenizer, write_tokenizer
from rcjax.model import LlamaConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DTYPES = ("float32", "bfloat16", "float16")
PROBE = 'Write a function `add(a, b)` that returns the sum of two numbers.\nassert add(1, 2) == 3, "sum"'

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class ExportError(ValueError):
    """An export that can not be made or did not prove itself; the message says what is wrong."""


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
      directory: where it lies.
      num_params, num_bytes, num_files: of the weights.
      dtype: of the weights.
      logit_difference: largest difference of a logit on the probe prompt between the live weights and those read
        again; rounding to ``dtype`` is all there is in it, so it is 0 where that is the live weights' type.
    """

    directory: str
    num_params: int
    num_bytes: int
    num_files: int
    dtype: str
    logit_difference: float

    def __str__(self) -> str:
        files = f"{self.num_files} files, " if self.num_files > 1 else ""
        return (
            f"{self.directory}: {self.num_params:,} parameters in {self.dtype} ({files}{self.num_bytes / 2**20:.1f} "
            f"MiB), read again: every tensor equal, logits of a probe prompt within {self.logit_difference:.1e}"
        )


def export_steps(config: LlamaConfig) -> int:
    """How many steps ``export`` reports to ``on_advance``: each tensor is written, and compared."""
    return 2 * len(tensor_specs(config))


def export(
    config: LlamaConfig,
    params: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    directory: str | Path,
    *,
    dtype: str = "float32",
    max_shard_size: int | str = "5GB",
    metadata: Mapping[str, Any] | None = None,
    on_advance: Callable[[int], Any] | None = None,
) -> ExportReport:
    """Writes config, generation config, weights, tokenizer with chat template and a model card.

    All is written aside, opened again as any user would, compared with the live weights tensor by tensor and by
    logits on a probe prompt, and only then renamed: a directory that exists is whole. One that existed before is
    replaced at that moment.

    Where the parameters lie on several hosts, every process calls this with the same arguments; process 0 writes.
    Beyond the parameters it needs memory for the largest tensor two or three times, or for two layers.

    Args:
      params: the plain parameter dict: jax arrays on any mesh, or numpy arrays.
      directory: to write; process 0's alone matters.
      dtype: of the weights written, one of ``DTYPES``.
      max_shard_size: largest file of weights, in bytes or with a decimal unit, such as ``5GB``; a single tensor that is
        larger gets a file of its own.
      metadata: for the model card, see ``model_card``.
      on_advance: called with 1 after each of ``export_steps`` steps, on every process.

    Returns:
      The report, on every process.

    Raises:
      ExportError: unknown dtype or size, a tokenizer that has more tokens than the model, a disk that is full, or a
        directory that reads back otherwise than written. Every process raises it.
    """
    directory = Path(directory)
    if dtype not in DTYPES:
        raise ExportError(f"config.export.dtype is {dtype!r}; choices are {', '.join(DTYPES)}")
    shard_bytes = parse_size(max_shard_size)
    plain = codec(tokenizer)
    if plain.vocab_size > config.vocab_size:
        raise ExportError(
            f"the tokenizer has {plain.vocab_size} tokens but the model {config.vocab_size}; "
            "export with the tokenizer that the model was trained with"
        )
    prompt = encode_prompt([Message("user", (Block(BlockType.TEXT, PROBE),))], plain)
    job = _Job(config, params, directory, dtype, plan_files(config, dtype, shard_bytes), on_advance or (lambda _: None))
    with contextlib.ExitStack() as stack:
        partial = None
        with job.step():
            if leads():
                partial = stack.enter_context(whole_directory(directory))
                _write_settings(config, plain, tokenizer, partial, dtype)
                card = model_card(config, directory.absolute().name, dtype, metadata or {})
                (partial / "README.md").write_text(card, encoding="utf-8")
        num_bytes = job.write_weights(partial)
        with job.step():
            if partial is not None:
                _prove_settings(config, partial, prompt)
        difference = job.prove_weights(partial, prompt)
        with job.step():
            stack.close()  # gives the directory its name
    return ExportReport(str(directory), config.num_params, num_bytes, len(job.files), dtype, difference)


def parse_size(size: int | str) -> int:
    """Bytes of ``5GB``, ``200MB``, ``1.5 TB`` or a plain number; units are decimal, as in transformers.

    Raises:
      ExportError: not a size, or none at all.
    """
    match = re.fullmatch(r"(\d{1,18})|(\d{1,18}(?:\.\d+)?)\s*([KMGT]B)", str(size).strip().upper())
    count = (int(match[1]) if match[1] else int(float(match[2]) * _UNITS[match[3]])) if match else 0
    if count < 1:
        raise ExportError(
            f"--max_shard_size={size} is not a size; give a number of bytes, or one with KB, MB, GB or TB, such as 5GB"
        )
    return count


def plan_files(config: LlamaConfig, dtype: str, max_shard_bytes: int) -> dict[str, list[str]]:
    """File name -> names of its tensors: the very files into which ``save_pretrained`` of transformers would cut it."""
    from huggingface_hub import split_state_dict_into_shards_factory

    itemsize = jnp.dtype(dtype).itemsize
    split = split_state_dict_into_shards_factory(
        {spec.name: spec for spec in tensor_specs(config)},
        get_storage_size=lambda spec: math.prod(spec.shape) * itemsize,
        filename_pattern=WEIGHTS.replace(".", "{suffix}."),
        max_shard_size=max_shard_bytes,
    )
    return split.filename_to_tensors


@dataclasses.dataclass(frozen=True)
class _Job:
    """What every process does with the tensors; ``partial`` is the directory on process 0 and None elsewhere."""

    config: LlamaConfig
    params: dict[str, Any]
    directory: Path
    dtype: str
    files: dict[str, list[str]]
    advance: Callable[[int], Any]

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """A block of process 0, which every process leaves with the same sentence if it fails."""
        with together(ExportError):
            try:
                yield
            except ProofError as error:
                raise ExportError(str(error)) from error
            except OSError as error:
                raise ExportError(_sentence(self.directory, error)) from error

    def write_weights(self, partial: Path | None) -> int:
        """Writes each tensor as it comes, and the index if there are several files; returns the tensors' bytes."""
        specs = {spec.name: spec for spec in tensor_specs(self.config)}
        dtype = jnp.dtype(self.dtype)
        num_bytes = sum(math.prod(spec.shape) for spec in specs.values()) * dtype.itemsize
        plan = {file: {name: specs[name].shape for name in names} for file, names in self.files.items()}
        with SafetensorsWriter(partial or Path(), plan, dtype) as writer:
            for _, name in writer.order:
                tensor = gather_tensor(self.params, specs[name])
                with self.step():
                    if partial is not None:
                        writer.append(name, to_layout(specs[name], tensor, dtype))
                self.advance(1)
        with self.step():
            if partial is not None and len(self.files) > 1:
                metadata = {"total_parameters": self.config.num_params, "total_size": num_bytes}
                weight_map = {name: file for file, names in self.files.items() for name in names}
                _write_json(partial / INDEX, {"metadata": metadata, "weight_map": weight_map}, sort_keys=True)
        return num_bytes

    def prove_weights(self, partial: Path | None, prompt: list[int]) -> float:
        """Compares what lies in the directory with what lives; returns the largest difference of a logit."""
        specs, proof = tensor_specs(self.config), None
        with self.step():
            if partial is not None:
                proof = Proof(self.config, locate_tensors(partial, self.config), jnp.dtype(self.dtype), prompt)
        for spec in specs:
            tensor = gather_tensor(self.params, spec)
            with self.step():
                if proof is not None:
                    proof.take(spec, tensor)
            self.advance(1)
        if self.config.tie_embeddings:  # brought once more, for to keep it would cost a table's memory until now
            tensor = gather_tensor(self.params, specs[0])
            with self.step():
                if proof is not None:
                    proof.take_tied_head(specs[0], tensor)
        with self.step():
            difference = 0.0 if proof is None else proof.logit_difference()
        return tell(float(difference))


def _sentence(directory: Path, error: OSError) -> str:
    if error.strerror is None:  # one of our own, which says all
        return str(error)
    full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    return f"{directory} can not be written ({error.strerror}); {'free space or ' if full else ''}name another place"


def _write_json(path: Path, value: Mapping[str, Any], **style: Any) -> None:
    path.write_text(json.dumps(value, indent=2, **style) + "\n", encoding="utf-8")


def _write_settings(
    config: LlamaConfig, plain: TextCodec, tokenizer: PreTrainedTokenizerFast, directory: Path, dtype: str
) -> None:
    """Everything but weights and model card."""
    _write_json(directory / "config.json", {**config.to_hf(), "dtype": dtype, "torch_dtype": dtype})
    _write_json(
        directory / "generation_config.json",
        {
            "bos_token_id": plain.bos_id,
            "eos_token_id": [plain.eos_id, plain.special_ids[END_OF_MESSAGE]],
            "pad_token_id": plain.pad_id,
            "do_sample": False,
            "max_new_tokens": 512,
        },
    )
    try:
        write_tokenizer(tokenizer, directory)
    except OSError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception, with the number in its text
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _prove_settings(config: LlamaConfig, directory: Path, prompt: list[int]) -> None:
    """Whether config and tokenizer read back as they were."""
    read, expected = load_config(directory), dataclasses.replace(config, vocab_multiple=1)
    if read != expected:
        differ = [f.name for f in dataclasses.fields(config) if getattr(expected, f.name) != getattr(read, f.name)]
        raise ExportError(f"config.json reads back with another {differ[0]}: this model can not be exported")
    question = [{"role": "user", "content": PROBE}]
    template = load_tokenizer(directory).apply_chat_template
    if template(question, add_generation_prompt=True, return_dict=False) != prompt:
        raise ExportError("the chat template does not render the training format; use rcjax.hf.tokenizer.CHAT_TEMPLATE")
