"""TFRecord files without TensorFlow: framing with masked CRC-32C, sequential and random access.

A record is its length (uint64, little endian), the masked checksum of the length, the payload, and the masked
checksum of the payload. No jax here, nothing of TensorFlow: ``data_gen`` writes with this module, ``rcjax.data`` reads.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import google_crc32c

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
HEADER = _LENGTH.size + _CRC.size  # bytes before the payload
FOOTER = _CRC.size  # bytes behind it


class RecordError(ValueError):
    """A record file that is cut short or damaged; the message names the file and the byte offset."""


def masked_crc(data: bytes) -> int:
    """The checksum that TFRecord files carry: CRC-32C, rotated and offset."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def framed(record: bytes) -> bytes:
    """A record as it lies in a file."""
    length = _LENGTH.pack(len(record))
    return b"".join((length, _CRC.pack(masked_crc(length)), record, _CRC.pack(masked_crc(record))))


class RecordWriter:
    """Writes records to a file; a context manager."""

    def __init__(self, path: str | os.PathLike[str]):
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close()

    def write(self, record: bytes) -> None:
        """Appends one record."""
        self._file.write(framed(record))

    def close(self) -> None:
        """Flushes and closes the file."""
        self._file.close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()


def write_records(path: str | os.PathLike[str], records: Iterable[bytes]) -> int:
    """Writes ``records`` to ``path``; returns how many there were."""
    count = 0
    with RecordWriter(path) as writer:
        for record in records:
            writer.write(record)
            count += 1
    return count


class RecordFile:
    """Random access to the records of one file by an offset index over mapped memory.

    Opening walks the headers (and checks them), not the payloads; ``file[i]`` checks the payload that it reads.

    Raises:
      RecordError: the file can not be opened, is cut short, or a length is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                # An empty file can not be mapped, and holds no records.
                self._data: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        except OSError as error:
            raise RecordError(f"record file {self.path} can not be read ({error.strerror}); build it again") from error
        self._spans = list(self._walk(size))  # (start of the payload, its length)

    def _walk(self, size: int) -> Iterator[tuple[int, int]]:
        offset = 0
        while offset < size:
            if size - offset < HEADER:
                raise self._cut(offset)
            raw = self._data[offset : offset + _LENGTH.size]
            (crc,) = _CRC.unpack_from(self._data, offset + _LENGTH.size)
            if masked_crc(raw) != crc:
                raise self._damaged(offset, "length")
            (length,) = _LENGTH.unpack(raw)
            if size - offset - HEADER - FOOTER < length:
                raise self._cut(offset)
            yield offset + HEADER, length
            offset += HEADER + length + FOOTER

    def _cut(self, offset: int) -> RecordError:
        return RecordError(
            f"record file {self.path} is cut short: the record at byte {offset} is not whole; copy or build it again"
        )

    def _damaged(self, offset: int, part: str) -> RecordError:
        return RecordError(
            f"record file {self.path} is damaged: the {part} of the record at byte {offset} has a wrong checksum; "
            "copy or build it again"
        )

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> bytes:
        """Payload of record ``index``.

        Raises:
          RecordError: its checksum is wrong.
          IndexError: there is no such record.
        """
        start, length = self._spans[index]
        data = self._data[start : start + length]
        (crc,) = _CRC.unpack_from(self._data, start + length)
        if masked_crc(data) != crc:
            raise self._damaged(start - HEADER, "content")
        return data

    def __iter__(self) -> Iterator[bytes]:
        return (self[index] for index in range(len(self)))

    def close(self) -> None:
        """Drops the mapping."""
        if isinstance(self._data, mmap.mmap):
            self._data.close()


def read_records(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """The payloads of a file in order; see ``RecordFile`` for errors."""
    file = RecordFile(path)
    try:
        yield from file
    finally:
        file.close()
