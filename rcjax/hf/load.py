"""Model directories in the Hugging Face form: ``config.json`` and safetensors, read without torch."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rcjax.hf import convert
from rcjax.model import LlamaConfig

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


class ModelLoadError(ValueError):
    """A model directory that can not be read; the message names the file and what is wrong with it."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      ModelLoadError: no such file, not JSON, not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(f"{path} does not exist; give the directory of a Hugging Face model") from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} can not be read as JSON ({error}); copy the file again") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} holds no JSON object; copy the file again")
    return value


def load_config(directory: str | Path) -> LlamaConfig:
    """The model's shape from ``config.json``.

    Raises:
      ModelLoadError: the file can not be read.
      ModelConfigError: a field in it is not supported.
    """
    return LlamaConfig.from_hf(read_json(Path(directory) / "config.json"))


def load_model(directory: str | Path, dtype: Any = None) -> tuple[LlamaConfig, dict[str, Any]]:
    """Shape and parameters of a model directory.

    Args:
      directory: with ``config.json`` and ``model.safetensors``, or shards with an index.
      dtype: of the parameters; None takes the checkpoint's.

    Returns:
      The config, and the parameter dict of numpy arrays.

    Raises:
      ModelLoadError: a file is missing or cut short, a tensor is missing, left over or of another shape or type.
      ModelConfigError: ``config.json`` asks for what is not supported.
    """
    directory = Path(directory)
    config = load_config(directory)
    specs = {spec.name: spec for spec in convert.tensor_specs(config)}
    with contextlib.ExitStack() as stack:
        where = _locate(directory, stack)
        # A tied model's file may hold the table twice; transformers ignores the second, and so do we.
        extra = [name for name in where if name not in specs and not _harmless(name, config)]
        missing = [name for name in specs if name not in where]
        for what, names in (("lacks", missing), ("has unexpected", extra)):
            if names:
                shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
                raise ModelLoadError(
                    f"{directory} {what} {'tensors' if len(names) > 1 else 'tensor'} {shown}; "
                    "its config.json belongs to another checkpoint or the download is not complete"
                )

        def read(name: str) -> np.ndarray:
            path, file = where[name]
            part = file.get_slice(name)
            if tuple(part.get_shape()) != specs[name].shape:
                raise ModelLoadError(
                    f"{path}: tensor {name} has shape {list(part.get_shape())}, but config.json asks for "
                    f"{list(specs[name].shape)}"
                )
            if part.get_dtype() not in _FLOATS:
                raise ModelLoadError(
                    f"{path}: tensor {name} has type {part.get_dtype()}; quantised weights are not supported, "
                    f"use a checkpoint in {', '.join(_FLOATS)}"
                )
            return file.get_tensor(name)

        return config, convert.from_hf(config, read, dtype)


def _harmless(name: str, config: LlamaConfig) -> bool:
    """Left over in old checkpoints: rotary tables that were saved as buffers, and a tied head."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_embeddings)


def _locate(directory: Path, stack: contextlib.ExitStack) -> dict[str, tuple[Path, Any]]:
    """Name of a tensor -> (file, open file)."""
    single, index = directory / WEIGHTS, directory / INDEX
    if single.exists():
        return {name: (single, file) for file, names in [_open(single, stack)] for name in names}
    if not index.exists():
        pickles = next(directory.glob("*.bin"), None)
        mend = (
            f"{pickles.name} is a pickle, which is not read: save the model again with safe_serialization=True"
            if pickles
            else "give the directory of a Hugging Face model"
        )
        raise ModelLoadError(f"{directory} has neither {WEIGHTS} nor {INDEX}; {mend}")
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict):
        raise ModelLoadError(f"{index}: field weight_map is missing; copy the file again")
    files = {}
    for shard in sorted(set(placed.values())):
        if not (directory / shard).exists():
            raise ModelLoadError(f"{directory / shard} does not exist, but {INDEX} names it; complete the download")
        files[shard] = _open(directory / shard, stack)
    where = {}
    for name, shard in placed.items():
        file, names = files[shard]
        if name not in names:
            raise ModelLoadError(f"{directory / shard} lacks tensor {name}, which {INDEX} places there")
        where[name] = (directory / shard, file)
    return where


def _open(path: Path, stack: contextlib.ExitStack) -> tuple[Any, frozenset[str]]:
    from safetensors import SafetensorError, safe_open

    try:
        file = stack.enter_context(safe_open(path, framework="numpy"))
        return file, frozenset(file.keys())
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(
            f"{path} is no whole safetensors file ({str(error).splitlines()[0]}); copy it again"
        ) from None


def tensor_names(directory: str | Path) -> Iterator[str]:
    """Names of the tensors that a model directory holds."""
    with contextlib.ExitStack() as stack:
        yield from _locate(Path(directory), stack)
