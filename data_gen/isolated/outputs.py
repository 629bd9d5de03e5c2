"""Outputs of functions as bytes that may come from an enemy: plain data and well-known classes of values.

The same value gives the same bytes (no references between parts, ``Pickler.fast``), so bytes that are equal need not be
decoded. Sets and dictionaries that were filled in another order give other bytes.
"""

from __future__ import annotations

import io
import pickle

LARGEST = 128 << 20  # bytes of one output

# Classes besides those that pickle has an opcode for. All of them are data: making one runs nobody's code.
_KNOWN = {
    "builtins": (
        "complex",
        "range",
        "slice",
        "bytearray",
        "set",
        "frozenset",
        "list",
        "dict",
        "int",
        "float",
        "str",
        "tuple",
    ),
    "collections": ("Counter", "OrderedDict", "defaultdict", "deque"),
    "copyreg": ("_reconstructor",),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "numpy": ("dtype", "ndarray"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.numeric": ("_frombuffer",),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
}


class Foreign(Exception):
    """A value of a class that is not known, or bytes that are none of ``encode``."""


def known(with_numpy: bool) -> frozenset:
    """What ``encode`` takes, found now: before a program could replace it."""
    import importlib

    found = set()
    if with_numpy:
        import numpy

        found |= {numpy.bool_, *(numpy.dtype(code).type for code in "bBhHiIlLqQefdgFDG")}
    for module, names in _KNOWN.items():
        if module.startswith("numpy") and not with_numpy:
            continue
        try:
            loaded = importlib.import_module(module)
        except ImportError:
            continue
        found.update(getattr(loaded, name) for name in names if hasattr(loaded, name))
    return frozenset(found)


class TooLarge(Exception):
    """An output of more than ``LARGEST`` bytes."""


class _Buffer(io.BytesIO):
    def write(self, data, *, _largest=LARGEST, _write=io.BytesIO.write, _at=io.BytesIO.tell):
        if _at(self) > _largest:
            raise TooLarge
        return _write(self, data)


class Encoder(pickle.Pickler):
    """An array of objects is foreign, since its elements may be anything; so is a class that is not known, wherever."""

    classes: frozenset = frozenset()
    array = dtype = function = type(None)

    def reducer_override(self, value):
        """Called for what has no opcode: classes and functions, which are named in the bytes, and instances."""
        kind = type(value)
        if kind is self.array:
            if value.dtype.hasobject:
                raise Foreign
            return value.__reduce_ex__(4)
        if kind in self.classes or isinstance(value, self.dtype):
            return NotImplemented
        if (isinstance(value, type) or kind is self.function) and value in self.classes:
            return NotImplemented
        raise Foreign


def prepare(with_numpy: bool = True) -> None:
    """Looks the known classes up, before a program could replace them; without numpy its classes are foreign."""
    Encoder.classes, Encoder.function = known(with_numpy), type(len)
    if with_numpy:
        import numpy

        Encoder.array, Encoder.dtype = numpy.ndarray, numpy.dtype


class _Decoder(pickle.Unpickler):
    def find_class(self, module, name):
        if name in _KNOWN.get(module, ()):
            return super().find_class(module, name)
        raise Foreign(f"{module}.{name}")


_SIMPLE = frozenset((type(None), bool, int, float, str))


def _new() -> tuple:
    """A buffer, and an encoder that writes to it."""
    buffer = _Buffer()
    encoder = Encoder(buffer, 5)
    encoder.fast = True
    return buffer, encoder


_kept = [_new()]  # making them takes longer than to encode a short list
_SMALL = 1 << 16  # bytes that may stay in the buffer: what is kept there the program can not use


def encode(value, *, _simple=_SIMPLE, _dumps=pickle.dumps, _kept=_kept, _new=_new, _small=_SMALL) -> bytes:
    """``value`` as bytes; ``prepare`` must have been called.

    Raises:
      Foreign: it, or something in it, is of another class.
      TooLarge: it takes more than ``LARGEST`` bytes.
      Exception: what else goes wrong on the way, e.g. RecursionError for one that holds itself.
    """
    if type(value) in _simple:
        return _dumps(value, 5)
    buffer, encoder = _kept[0]
    buffer.seek(0)
    buffer.truncate()
    try:
        encoder.dump(value)
    except BaseException:
        _kept[0] = _new()  # it may have got lost somewhere inside of the value
        raise
    content = buffer.getvalue()
    if len(content) > _small:
        _kept[0] = _new()
    return content


def decode(data: bytes):
    """The value.

    Raises:
      Foreign: the bytes name another class.
      Exception: whatever the unpickler stumbles over.
    """
    return _Decoder(io.BytesIO(data)).load()
