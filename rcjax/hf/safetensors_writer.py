"""Safetensors files written tensor by tensor, so that no more than one tensor need be in memory.

The ``safetensors`` library writes a file from a dict that holds all of its tensors, which for a model of a few hundred
GB, or even for one file of 5 GB a process, is what exhausts a host's memory. The format needs no such thing: 8 bytes of
length, a JSON header with every offset, then the tensors one behind the other. Files are byte for byte those that the
library would write: tensors in the order of their names, header padded with spaces to a multiple of 8 bytes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rcjax.hf.safetensors_reader import FLOATS

TYPE_NAMES = {dtype: name for name, dtype in FLOATS.items()}


def file_header(shapes: Mapping[str, Sequence[int]], dtype: Any, metadata: Mapping[str, str]) -> bytes:
    """Everything in front of the tensors, which lie in the order of ``shapes``."""
    dtype, start = np.dtype(dtype), 0
    fields: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, shape in shapes.items():
        stop = start + math.prod(shape) * dtype.itemsize
        fields[name] = {"dtype": TYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class SafetensorsWriter:
    """Writes one file after another, each tensor at the moment when ``append`` gets it.

    A context manager that closes the file at hand; it is whole only if ``append`` got all of its tensors.

    Args:
      directory: where the files go; none of them may exist.
      files: file name -> tensor name -> shape.
      dtype: of all tensors, one of ``TYPE_NAMES``.
    """

    def __init__(self, directory: Path, files: Mapping[str, Mapping[str, Sequence[int]]], dtype: Any):
        self._directory, self._dtype = directory, np.dtype(dtype)
        self._files = {file: {name: tuple(shapes[name]) for name in sorted(shapes)} for file, shapes in files.items()}
        self.order = [(file, name) for file, shapes in self._files.items() for name in shapes]
        self._next = 0
        self._open: Any = None

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._open is not None:
            with contextlib.suppress(OSError):  # left half-written by an error, which is what is to be told
                self._open.close()

    def append(self, name: str, tensor: np.ndarray) -> None:
        """Writes a tensor; they must come in ``order``. The last one of a file brings the whole file to the disk.

        Raises:
          OSError: the disk is full, among others.
          ValueError: another tensor than the one that is due, or of another shape or type.
        """
        file, due = self.order[self._next]
        shape = self._files[file][due]
        if (name, tensor.shape, tensor.dtype) != (due, shape, self._dtype):
            raise ValueError(
                f"{file}: tensor {due} of shape {shape} and type {self._dtype} is due, not {name} of shape "
                f"{tensor.shape} and type {tensor.dtype}"
            )
        if self._open is None:
            self._open = open(self._directory / file, "xb")  # noqa: SIM115 - stays open from tensor to tensor
            self._open.write(file_header(self._files[file], self._dtype, {"format": "pt"}))
        # As bytes: bfloat16 has no buffer interface. Not copied where the tensor is contiguous.
        self._open.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8))
        self._next += 1
        if self._next == len(self.order) or self.order[self._next][0] != file:
            self._finish()

    def _finish(self) -> None:
        done, self._open = self._open, None
        with done:
            done.flush()
            os.fsync(done.fileno())  # some file systems tell only now that there is no room
            if hasattr(os, "posix_fadvise"):  # so that who reads it again reads the disk, not the memory
                os.posix_fadvise(done.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
