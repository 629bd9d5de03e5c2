"""Compiled programs are kept between runs, so that a second start compiles nothing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import sys
from pathlib import Path

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def keep_compiled_programs() -> None:
    """Names JAX's cache directory for this process and those it starts. To be called before anything is compiled.

    Nothing happens where ``JAX_COMPILATION_CACHE_DIR`` is set already (empty: no cache), or where the user's cache
    directory can not be written. What is compiled for a CPU may not run on another, so each kind has its own.
    """
    if VARIABLE in os.environ:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "rcjax" / "compiled" / f"{platform.machine()}-{_processor()}"
    with contextlib.suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        if os.access(directory, os.W_OK):
            os.environ[VARIABLE] = str(directory)
            if "jax" in sys.modules:  # it has read the environment already
                sys.modules["jax"].config.update(VARIABLE.lower(), str(directory))


def _processor() -> str:
    """Tells kinds of processors apart by what they can do."""
    about = platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        about = next((line for line in lines if line.startswith(("flags", "Features"))), about)
    return hashlib.sha256(about.encode()).hexdigest()[:12]
