"""Messages between the processes: a length of four bytes, then JSON or plain pickled data."""

from __future__ import annotations

import io
import os
import pickle

# By name: a program that replaces `json.dumps` shall spoil its own calls alone.
from json import dumps, loads
from struct import pack, unpack

_pickled = pickle.dumps
LARGEST = 64 << 20  # bytes of one message; what is longer is no answer


class NotPlain(ValueError):
    """A value that is no plain data, or bytes that are no message."""


def read_message(fd: int):
    """The next message, None at the end of the stream."""
    header = _read_exactly(fd, 4)
    if header is None:
        return None
    body = _read_exactly(fd, unpack("<I", header)[0])
    return None if body is None else loads(body)


def _read_exactly(fd: int, count: int):
    parts = []
    while count:
        part = os.read(fd, min(count, 1 << 20))
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def framed(message) -> bytes:
    """``message`` as bytes for the wire."""
    body = dumps(message).encode()
    return pack("<I", len(body)) + body


def write_message(fd: int, message) -> None:
    """Writes one message."""
    data = memoryview(framed(message))
    while data:
        data = data[os.write(fd, data) :]


class _PlainUnpickler(pickle.Unpickler):
    """Knows no name at all, so that no pickle can call, import or build anything but plain data."""

    def find_class(self, module, name):
        raise NotPlain(f"{module}.{name}")


def dump_plain(value) -> bytes:
    """``value`` for ``load_plain``; protocol 5 has opcodes of its own for sets and byte arrays."""
    return _pickled(value, 5)


def load_plain(data: bytes):
    """None, bool, int, float, str, bytes, bytearray, list, tuple, dict, set, frozenset, of exactly these types.

    Raises:
      NotPlain: anything else. ``data`` may come from an enemy.
    """
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except NotPlain:
        raise
    except Exception as error:  # the unpickler raises whatever it stumbles over
        raise NotPlain(type(error).__name__) from error
