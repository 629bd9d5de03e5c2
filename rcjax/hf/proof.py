"""Whether weights on disk are the live ones: tensor by tensor, and by what both models say to a prompt.

Both models run side by side, a layer at a time, so that one layer is in memory and not two models.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rcjax.hf.convert import TensorSpec, copy_tiles, put, tensor_specs
from rcjax.hf.safetensors_reader import INDEX, WEIGHTS
from rcjax.model import LlamaConfig, apply_layer, embed_tokens, final_logits
from rcjax.sharding import make_mesh

CHUNK_BYTES = 2**23  # so much of a tensor is compared, and of a table put to use, at a time


class ProofError(ValueError):
    """Weights that are not what they should be; the message names the tensor where it is one."""


class Proof:
    """Takes the live tensors in the order of ``tensor_specs`` and compares each with the one on disk.

    Args:
      config: the model's shape.
      where: tensor name -> safetensors file.
      dtype: of the weights on disk.
      prompt: token ids of the probe.
    """

    def __init__(self, config: LlamaConfig, where: Mapping[str, Path], dtype: Any, prompt: Sequence[int]):
        self._config, self._where, self._dtype, self._prompt = config, where, np.dtype(dtype), list(prompt)
        # One device of this process, whatever mesh the parameters lie on.
        self._mesh = make_mesh({}, [jax.local_devices()[0]])
        self._layer_specs = [spec for spec in tensor_specs(config) if spec.layer == 0]
        self._layer: dict[str, Any] = {}  # the live one, as far as its tensors have come
        self._in_layer: list[TensorSpec] = []
        # Of the live model and of the one on disk: hidden states [1, S, D], scale of the last norm [D].
        self._hidden: list[jax.Array] = []
        self._norms: list[jax.Array] = []
        self._exact = True
        self._difference = np.float32(0)

    def take(self, spec: TensorSpec, live: np.ndarray) -> None:
        """Compares one tensor, in our layout, and goes on with the models as far as it lets them.

        Raises:
          ProofError: the tensor on disk is another, or the models' logits are not finite.
        """
        self._exact &= live.dtype == self._dtype
        self._compare(spec, live)
        if spec.path[0] == "embed":
            read = np.concatenate([self._read(spec, slice(token, token + 1)) for token in self._prompt])
            tokens = np.arange(len(self._prompt))[None]  # the prompt's rows are all of the table that is needed
            self._hidden = [embed_tokens(self._config, self._put(rows), tokens) for rows in (live[self._prompt], read)]
        elif spec.path[0] == "norm":
            self._norms = [self._put(live), self._put(self._read_ours(spec))]
        elif spec.path[0] == "head":
            self._take_head(spec, live)
        else:
            put(self._layer, spec.path[1:], self._put(live))
            self._in_layer.append(spec)
            if len(self._in_layer) == len(self._layer_specs):
                self._run_layer(spec.layer)

    def take_tied_head(self, spec: TensorSpec, table: np.ndarray) -> None:
        """The embedding table once more, as the output projection of a tied model; may raise as ``take``."""
        self._take_head(spec, table.T)

    def logit_difference(self) -> float:
        """Largest difference of a logit; 0 where the weights on disk are of the live type.

        Raises:
          ProofError: weights that are equal give other logits.
        """
        if self._exact and self._difference:
            raise ProofError("logits of a probe prompt differ once the weights are read again; try another disk")
        return float(self._difference)

    def _run_layer(self, index: int) -> None:
        positions = np.arange(len(self._prompt), dtype=np.int32)[None]
        for side in range(2):
            with jax.set_mesh(self._mesh):
                self._hidden[side] = _apply_layer(
                    self._config, self._layer, self._config.windows[index], self._hidden[side], positions
                )
            self._hidden[side].block_until_ready()
            self._layer = {}  # before the other one comes
            if side == 0:
                for spec in self._in_layer:
                    put(self._layer, spec.path[1:], self._put(self._read_ours(spec)))
        self._in_layer = []

    def _take_head(self, spec: TensorSpec, kernel: np.ndarray) -> None:
        """Logits of all tokens, some at a time; kernel: live, [D, V]."""
        for rows in _chunks(spec, self._dtype):
            parts = kernel[:, rows], self._read(spec, rows).T
            with jax.set_mesh(self._mesh):
                live, again = (
                    np.asarray(_final_logits(self._config, norm, self._put(part), hidden))
                    for norm, part, hidden in zip(self._norms, parts, self._hidden, strict=True)
                )
            if not np.all(np.isfinite(live)):
                raise ProofError(
                    "the model gives logits that are not finite on a probe prompt; its training has diverged"
                )
            if not np.all(np.isfinite(again)):
                raise ProofError(
                    f"in {self._dtype} the model gives logits that are not finite on a probe prompt, for a weight is "
                    "too large for this type; export in bfloat16 or float32"
                )
            self._difference = max(self._difference, np.max(np.abs(live - again)))

    def _put(self, tensor: np.ndarray) -> jax.Array:
        return jax.device_put(np.ascontiguousarray(tensor), self._mesh.devices.flat[0])

    def _compare(self, spec: TensorSpec, live: np.ndarray) -> None:
        bits = f"u{self._dtype.itemsize}"  # compared as such, for NaN is not NaN
        for rows in _chunks(spec, self._dtype):
            written, read = to_layout(spec, live, self._dtype, rows), self._read(spec, rows)
            if written.dtype != read.dtype or not np.array_equal(written.view(bits), read.view(bits)):
                raise ProofError(
                    f"{self._where[spec.name].name}: tensor {spec.name} reads back otherwise than it was written; "
                    "try another disk"
                )

    def _read_ours(self, spec: TensorSpec) -> np.ndarray:
        """A tensor from disk, in our layout."""
        tensor = np.empty(spec.inner_shape, self._dtype)
        copy_tiles(spec.hf_view(tensor), self._read(spec))
        return tensor

    def _read(self, spec: TensorSpec, rows: slice | None = None) -> np.ndarray:
        """A tensor, or rows of it, from disk. The file is opened for it alone: what is mapped counts as memory."""
        from safetensors import SafetensorError, safe_open

        path = self._where[spec.name]
        try:
            with safe_open(path, framework="numpy") as file:
                part = file.get_slice(spec.name)
                return part[:] if rows is None else part[rows]
        except (SafetensorError, OSError) as error:
            raise ProofError(f"{path.name} can not be read again ({error}); try another disk") from None


def to_layout(spec: TensorSpec, live: np.ndarray, dtype: np.dtype, rows: slice | None = None) -> np.ndarray:
    """A tensor of ours, or rows of it, in the Hugging Face layout and type, without the padding.

    What is too large for the type becomes infinite, which the logits will show.
    """
    view = spec.hf_view(live)[slice(0, spec.shape[0]) if rows is None else rows]
    result = np.empty(view.shape, dtype)
    with np.errstate(over="ignore"):
        copy_tiles(result, view)
    return result


def locate_tensors(directory: Path, config: LlamaConfig) -> dict[str, Path]:
    """Tensor name -> file, found as anyone finds it who has the directory alone.

    Raises:
      ProofError: index and files do not agree, or do not hold the tensors of the model.
    """
    from safetensors import SafetensorError, safe_open

    index = directory / INDEX
    placed = json.loads(index.read_text())["weight_map"] if index.exists() else None
    where = {}
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                where |= dict.fromkeys(file.keys(), path)
        except (SafetensorError, OSError) as error:
            raise ProofError(f"{path.name} can not be read again ({error}); try another disk") from None
    found = {name: path.name for name, path in where.items()}
    if found != (placed or dict.fromkeys(found, WEIGHTS)) or found.keys() != {s.name for s in tensor_specs(config)}:
        raise ProofError("the files of weights do not hold what they should once they are read again; try another disk")
    return where


@functools.partial(jax.jit, static_argnums=(0, 2))
def _apply_layer(config: LlamaConfig, layer: dict[str, Any], window: int | None, hidden: jax.Array, positions):
    return apply_layer(config, layer, window, hidden, positions, jnp.ones_like(positions), attention="blocks")


_final_logits = jax.jit(final_logits, static_argnums=0)


def _chunks(spec: TensorSpec, dtype: np.dtype) -> Iterator[slice]:
    """Rows of a Hugging Face tensor, at most ``CHUNK_BYTES`` at a time."""
    size = max(1, CHUNK_BYTES // (math.prod(spec.shape[1:]) * dtype.itemsize))
    return (slice(start, min(start + size, spec.shape[0])) for start in range(0, spec.shape[0], size))
