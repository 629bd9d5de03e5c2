"""Weights of a model directory: one safetensors file or shards with an index, read part by part.

A file is eight bytes of header length, a JSON header, and the tensors in row order. Parts are read with plain reads,
not through a mapping: pages of a mapped file count as the process's memory for as long as it is mapped.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

FLOATS = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# The longest header that the format allows.
_MAX_HEADER = 100_000_000

Range = tuple[int, int]  # [start, stop)


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


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    Attributes:
      path: of the file.
      dtype: as the file names it, e.g. ``BF16``; a key of ``FLOATS`` where it can be read.
      shape: of the tensor.
      offset: of its first byte in the file.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


class Weights(Mapping[str, StoredTensor]):
    """The tensors of a model directory by name; a context manager that keeps the files open in between.

    Opening reads the headers alone, and finds out what is missing or cut short.

    Attributes:
      bytes_read: how much of the tensors has been read so far.

    Raises:
      ModelLoadError: no weights, a missing shard, or a file that is not whole.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self.bytes_read = 0
        self._files: dict[Path, int] = {}
        self._tensors = _locate(self.directory)

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *_: object) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def __getitem__(self, name: str) -> StoredTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def read_rows(self, name: str, rows: Range, columns: Range | None = None) -> np.ndarray:
        """Rows of a tensor, or of a matrix's columns; of the file no more is read than that.

        Args:
          name: of a tensor of one dimension (whose entries are the rows) or two.
          rows, columns: what to read; None reads whole rows.
        """
        stored = self[name]
        width = math.prod(stored.shape[1:])
        first, last = (0, width) if columns is None else columns
        out = np.empty((rows[1] - rows[0], last - first), FLOATS[stored.dtype])
        row_bytes = width * out.itemsize
        start = stored.offset + rows[0] * row_bytes
        if last - first == width:
            self._fill(stored, out, start)
        else:
            for number, row in enumerate(out):
                self._fill(stored, row, start + number * row_bytes + first * out.itemsize)
        return out.reshape(-1) if len(stored.shape) == 1 else out

    def _fill(self, stored: StoredTensor, out: np.ndarray, offset: int) -> None:
        """Reads ``out.nbytes`` bytes at ``offset`` into a contiguous array."""
        if stored.path not in self._files:
            self._files[stored.path] = os.open(stored.path, os.O_RDONLY)
        view = memoryview(out.view(np.uint8).reshape(-1))
        self.bytes_read += len(view)
        while len(view):
            try:
                count = os.preadv(self._files[stored.path], [view], offset)
            except OSError as error:
                reason = error.strerror or error
                raise ModelLoadError(f"{stored.path} can not be read ({reason}); copy it again") from None
            if not count:
                raise ModelLoadError(f"{stored.path} was cut short while it was read; copy it again")
            view, offset = view[count:], offset + count


def _locate(directory: Path) -> dict[str, StoredTensor]:
    """All tensors of a directory, from the headers of its files."""
    single, index = directory / WEIGHTS, directory / INDEX
    if single.exists():
        return read_header(single)
    if not index.exists():
        raise ModelLoadError(f"{directory} has neither {WEIGHTS} nor {INDEX}; {_mend(directory)}")
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(shard, str) for shard in placed.values()):
        raise ModelLoadError(f"{index}: field weight_map is missing; copy the file again")
    shards = sorted(set(placed.values()))
    foreign = [shard for shard in shards if Path(shard).name != shard]
    if foreign:
        raise ModelLoadError(f"{index} names {foreign[0]!r}, which is not a file of {directory}; copy the file again")
    missing = [shard for shard in shards if not (directory / shard).exists()]
    if missing:
        more = f" (nor do {len(missing) - 1} others of {len(shards)})" if len(missing) > 1 else ""
        raise ModelLoadError(
            f"{directory / missing[0]} does not exist{more}, but {INDEX} names it; complete the download"
        )
    tensors = {shard: read_header(directory / shard) for shard in shards}
    for name, shard in placed.items():
        if name not in tensors[shard]:
            raise ModelLoadError(f"{directory / shard} lacks tensor {name}, which {INDEX} places there; copy it again")
    return {name: tensors[shard][name] for name, shard in placed.items()}


def _mend(directory: Path) -> str:
    pickles = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in directory.glob(kind))
    if pickles:
        return (
            f"{pickles[0]} is a pickle, which is not read: save the model again with "
            "save_pretrained(..., safe_serialization=True), or convert it at "
            "https://huggingface.co/spaces/safetensors/convert"
        )
    others = sorted(path.name for path in directory.glob("*.safetensors"))
    if others:
        return f"{others[0]} needs {INDEX} beside it: complete the download"
    return "give the directory of a Hugging Face model"


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file; its size is compared with what the header promises.

    Raises:
      ModelLoadError: not a safetensors file, or one that is cut short.
    """

    def damaged(reason: str) -> ModelLoadError:
        return ModelLoadError(f"{path} is no whole safetensors file ({reason}); copy it again")

    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise damaged(f"its header does not fit into {size:,} bytes")
            header = json.loads(file.read(length))
    except ValueError as error:
        if isinstance(error, ModelLoadError):
            raise
        raise damaged("its header is not JSON") from None
    except OSError as error:
        raise ModelLoadError(f"{path} can not be read ({error.strerror or error}); copy it again") from None
    if not isinstance(header, dict):
        raise damaged("its header is no JSON object")
    tensors, end = {}, 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            kind, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            whole = all(isinstance(number, int) and number >= 0 for number in (*shape, start, stop))
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise damaged(f"its header does not describe tensor {name}")
        if kind in FLOATS and math.prod(shape) * FLOATS[kind].itemsize != stop - start:
            raise damaged(f"tensor {name} of shape {list(shape)} has {stop - start:,} bytes")
        tensors[name] = StoredTensor(path, kind, shape, 8 + length + start)
        end = max(end, stop)
    if size != 8 + length + end:
        raise damaged(f"it has {size:,} bytes, its header promises {8 + length + end:,}")
    return tensors


def shown(names: Iterable[str], limit: int = 10) -> str:
    """A list for a message: the first names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
