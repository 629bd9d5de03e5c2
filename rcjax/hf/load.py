"""Model directories in the Hugging Face form: ``config.json`` and safetensors, read without torch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rcjax.hf import convert
from rcjax.hf.piecewise import Index, sharded_array
from rcjax.hf.safetensors_reader import FLOATS, INDEX, WEIGHTS, ModelLoadError, Weights, read_json, shown
from rcjax.hf.vocabulary import VocabularyPlan
from rcjax.model import LlamaConfig

__all__ = [
    "INDEX",
    "WEIGHTS",
    "ModelLoadError",
    "check_tensors",
    "load_config",
    "load_model",
    "load_params",
    "read_json",
    "tensor_names",
]

# Read at a time of one tensor.
_READ_BYTES = 4 * 2**20


def load_config(directory: str | Path) -> LlamaConfig:
    """The model's shape from ``config.json``.

    Raises:
      ModelLoadError: the file can not be read.
      ModelConfigError: a field in it is not supported.
    """
    return LlamaConfig.from_hf(read_json(Path(directory) / "config.json"))


def tensor_names(directory: str | Path) -> Iterator[str]:
    """Names of the tensors that a model directory holds."""
    with Weights(directory) as weights:
        yield from weights


def check_tensors(directory: str | Path, config: LlamaConfig) -> None:
    """Compares the weights of a directory with a model's shape; reads nothing but the headers of its files.

    Raises:
      ModelLoadError: a file is missing or cut short, a tensor is missing, left over or of another shape or type.
    """
    with Weights(directory) as weights:
        _check(weights, config)


def load_model(directory: str | Path, dtype: Any = None) -> tuple[LlamaConfig, dict[str, Any]]:
    """Shape and parameters of a model directory, in the memory of this host.

    Args:
      directory: with ``config.json`` and ``model.safetensors``, or shards with an index.
      dtype: of the parameters; None takes the checkpoint's.

    Returns:
      The config, and the parameter dict of numpy arrays.

    Raises:
      ModelLoadError: see ``check_tensors``.
      ModelConfigError: ``config.json`` asks for what is not supported.
    """
    config = load_config(directory)
    with Weights(directory) as weights:
        _check(weights, config)
        params: convert.Params = {}
        for path, specs in _by_param(config).items():
            dtype = np.dtype(FLOATS[weights[specs[0].name].dtype] if dtype is None else dtype)
            index = tuple((0, size) for size in _shape(specs))
            convert.put(params, path, _read(weights, specs, index, dtype, None))
        return config, params


def load_params(
    directory: str | Path,
    config: LlamaConfig,
    shardings: convert.Params,
    dtype: Any = jnp.float32,
    *,
    vocabulary: VocabularyPlan | None = None,
    on_advance: Callable[[int], None] | None = None,
) -> convert.Params:
    """Parameters born where they live: every process reads only what its devices hold, piece by piece.

    Beside the devices' shards, host memory holds a few pieces (``piecewise.PIECE_BYTES``) at a time. Every process
    of a run calls this alike.

    Args:
      directory: as for ``load_model``.
      config: the model to be: the checkpoint's but for ``vocab_size`` and ``vocab_multiple``.
      shardings: the parameter dict with a NamedSharding at each leaf.
      dtype: of the parameters; the checkpoint's is converted while it is read.
      vocabulary: where rows of the tables come from that the checkpoint does not hold; the tables take its
        ``new_size``. None keeps the checkpoint's vocabulary.
      on_advance: called with the number of tensors that came since the last call.

    Raises:
      ModelLoadError: see ``check_tensors``; or the tokenizer has more tokens than the checkpoint's tables rows.
      ValueError: ``vocabulary`` is not that of ``config``.
    """
    rows = load_config(directory).vocab_size
    new_size = rows if vocabulary is None else vocabulary.new_size
    if config.vocab_size != new_size:
        raise ValueError(f"config.vocab_size is {config.vocab_size}, but the tables get {new_size} rows")
    if vocabulary is not None:
        check_vocabulary(directory, rows, vocabulary)
    dtype = np.dtype(jax.dtypes.canonicalize_dtype(dtype))  # float64 is float32 while x64 is off
    params: convert.Params = {}
    with Weights(directory) as weights:
        _check(weights, dataclasses.replace(config, vocab_size=rows, vocab_multiple=1))
        for path, specs in _by_param(config).items():
            convert.put(
                params, path, _load_param(weights, specs, convert.find(shardings, path), dtype, vocabulary, on_advance)
            )
    return params


def check_vocabulary(directory: str | Path, rows: int, vocabulary: VocabularyPlan) -> None:
    """Refuses a tokenizer that has tokens for which a checkpoint with ``rows`` embeddings has none.

    Raises:
      ModelLoadError: it is so.
    """
    # Ids behind the old ones are all new, so only those of the old tokenizer can lack a row.
    if vocabulary.old_size > rows:
        raise ModelLoadError(
            f"the tokenizer has {vocabulary.old_size} tokens, but the embedding of {directory} only {rows} rows; "
            "use the tokenizer that belongs to the checkpoint"
        )


def _check(weights: Weights, config: LlamaConfig) -> None:
    directory, specs = weights.directory, {spec.name: spec for spec in convert.tensor_specs(config)}
    for name in specs:
        if name in weights and weights[name].dtype not in FLOATS:
            raise ModelLoadError(
                f"{weights[name].path}: tensor {name} has type {weights[name].dtype}; quantised weights are not "
                f"supported, use a checkpoint in {', '.join(FLOATS)}"
            )
    missing = [name for name in specs if name not in weights]
    extra = [name for name in weights if name not in specs and not _harmless(name, config)]
    problems = [
        f"{what} {'tensors' if len(names) > 1 else 'tensor'} {shown(names)}"
        for what, names in (("lacks", missing), ("has unexpected", extra))
        if names
    ]
    if problems:
        raise ModelLoadError(
            f"{directory} {' and '.join(problems)}; "
            "its config.json belongs to another checkpoint or the download is not complete"
        )
    for name, spec in specs.items():
        if weights[name].shape != spec.shape:
            raise ModelLoadError(
                f"{weights[name].path}: tensor {name} has shape {list(weights[name].shape)}, but config.json asks for "
                f"{list(spec.shape)}; its config.json belongs to another checkpoint"
            )


def _harmless(name: str, config: LlamaConfig) -> bool:
    """Left over in checkpoints: rotary tables saved as buffers, and a tied head. transformers ignores both."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_embeddings)


def _by_param(config: LlamaConfig) -> dict[tuple[str, ...], list[convert.TensorSpec]]:
    """Path of each parameter -> its tensors: one, or one a layer."""
    params: dict[tuple[str, ...], list[convert.TensorSpec]] = {}
    for spec in convert.tensor_specs(config):
        params.setdefault(spec.path, []).append(spec)
    return params


def _shape(specs: list[convert.TensorSpec]) -> tuple[int, ...]:
    """Of the parameter that these tensors make up."""
    return specs[0].inner_shape if specs[0].layer is None else (len(specs), *specs[0].inner_shape)


def _load_param(
    weights: Weights,
    specs: list[convert.TensorSpec],
    sharding: jax.sharding.NamedSharding,
    dtype: np.dtype,
    vocabulary: VocabularyPlan | None,
    on_advance: Callable[[int], None] | None,
) -> jax.Array:
    """One parameter, laid out by its sharding."""
    rows = specs[0].row_axes
    if specs[0].layer is not None:
        rows = (0, *(axis + 1 for axis in rows))
    told = 0

    def tell(share: float) -> None:
        nonlocal told
        done = int(share * len(specs))
        if on_advance is not None and done > told:
            on_advance(done - told)
        told = done

    read = functools.partial(_read, weights, specs, dtype=dtype, vocabulary=vocabulary)
    return sharded_array(_shape(specs), dtype, sharding, read, rows=rows, on_piece=tell)


def _read(
    weights: Weights,
    specs: list[convert.TensorSpec],
    index: Index,
    dtype: np.dtype,
    vocabulary: VocabularyPlan | None,
) -> np.ndarray:
    """The part of a parameter at an index."""
    out = np.empty([last - first for first, last in index], dtype)
    if specs[0].layer is None:
        _read_into(out, weights, specs[0], index, vocabulary)
    else:
        for target, layer in zip(out, range(*index[0]), strict=True):
            _read_into(target, weights, specs[layer], index[1:], vocabulary)
    return out


def _read_into(
    out: np.ndarray,
    weights: Weights,
    spec: convert.TensorSpec,
    index: Index,
    vocabulary: VocabularyPlan | None,
) -> None:
    """Reads the part of our tensor at ``index`` (without the layer axis), converted to the type of ``out``."""
    stored = weights[spec.name]
    view = spec.hf_view(out)
    rows, columns = spec.hf_ranges(index)
    present = min(stored.shape[0], spec.shape[0])  # a table may grow, shrink and be padded
    itemsize = FLOATS[stored.dtype].itemsize
    step = max(convert.TILE, _READ_BYTES // (itemsize * max(1, view.shape[-1]))) if columns else _READ_BYTES // itemsize
    top = 0
    for start, stop in rows:
        for first in range(start, min(stop, present), step):
            last = min(first + step, stop, present)
            left = 0
            for column in columns or [None]:
                block = weights.read_rows(spec.name, (first, last), column)
                width = block.shape[-1]
                where = (slice(top, top + last - first), *((slice(left, left + width),) if columns else ()))
                convert.copy_tiles(view[where], block)
                left += width
            top += last - first
        if stop > max(start, present):
            behind = stop - max(start, present)
            view[top : top + behind] = 0
            top += behind
    if spec.is_table and vocabulary is not None:
        (start, stop), (columns,) = rows[0], columns  # neither dimension of a table is made of several
        for token, pieces in vocabulary.means.items():
            if start <= token < stop:
                view[token - start] = _mean(weights, spec.name, pieces, columns)


def _mean(weights: Weights, name: str, pieces: tuple[int, ...], columns: tuple[int, int]) -> np.ndarray:
    """The mean of rows of a table, in float32 at least."""
    rows = np.concatenate([weights.read_rows(name, (piece, piece + 1), columns) for piece in pieces])
    return rows.astype(np.promote_types(rows.dtype, np.float32)).mean(axis=0)
