"""Directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_directory(path: str | Path) -> Iterator[Path]:
    """Gives an empty directory beside ``path``, which takes its place when the block ends without an error.

    An existing directory stays untouched until then and is replaced by two renames. After an error nothing is
    left; after a kill only the hidden ``.<name>.partial`` is, which the next attempt clears away.

    Raises:
      FileExistsError: ``path``, or what should be a directory above it, is a file.
    """
    path = Path(os.path.abspath(path))
    existing = next(place for place in (path, *path.parents) if place.exists())
    if not existing.is_dir():
        raise FileExistsError(f"{existing} is a file; name a directory to write or move the file away")
    partial, old = path.parent / f".{path.name}.partial", path.parent / f".{path.name}.old"
    path.parent.mkdir(parents=True, exist_ok=True)
    if old.exists() and not path.exists():  # killed between the two renames: put the old one back
        os.rename(old, path)
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            os.rename(path, old)
        os.rename(partial, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.rename(old, path)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
