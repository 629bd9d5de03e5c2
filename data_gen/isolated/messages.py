"""Messages between the processes: a length of four bytes, then JSON or plain pickled data.

Orders to a process are in the form of ``marshal``, which is read with a tenth of the work and memory of JSON. It must
not be read from a process that foreign code has had: what comes from there is JSON.
"""

from __future__ import annotations

import importlib
import io
import os
import pickle

# By name: a program that replaces `json.dumps` shall spoil its own calls alone.
from json import dumps, loads
from marshal import dumps as dump_order
from marshal import loads as load_order
from os import read
from struct import pack, unpack

_pickled = pickle.dumps
_TYPES = {("builtins", "complex"), ("builtins", "range"), ("decimal", "Decimal")}
_TYPES |= {("datetime", name) for name in ("date", "datetime", "time", "timedelta")}
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


def read_order(fd: int):
    """The next order, None at the end of the stream. From a process that can be trusted."""
    header = _read_exactly(fd, 4)
    if header is None:
        return None
    body = _read_exactly(fd, unpack("<I", header)[0])
    return None if body is None else load_order(body)


def order(message) -> bytes:
    """``message`` as bytes for ``read_order``."""
    body = dump_order(message)
    return pack("<I", len(body)) + body


def _read_exactly(fd: int, count: int) -> bytes | None:
    data = read(fd, min(count, 1 << 20)) if count else b""
    while len(data) < count:
        part = read(fd, min(count - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return data


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
    """Knows a few types by name, immutable ones whose constructors do little; so no pickle can call, import
    or build anything but plain data."""

    def find_class(self, module, name):
        if (module, name) in _TYPES:
            return getattr(importlib.import_module(module), name)
        raise NotPlain(f"{module}.{name}")


def dump_plain(value) -> bytes:
    """``value`` for ``load_plain``; protocol 5 has opcodes of its own for sets and byte arrays."""
    return _pickled(value, 5)


def load_plain(data: bytes):
    """None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, decimals and
    dates, of exactly these types.

    Raises:
      NotPlain: anything else. ``data`` may come from an enemy.
    """
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except NotPlain:
        raise
    except Exception as error:  # the unpickler raises whatever it stumbles over
        raise NotPlain(type(error).__name__) from error
