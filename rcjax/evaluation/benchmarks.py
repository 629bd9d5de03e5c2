"""The benchmarks by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from rcjax.evaluation.python_sets import read_python_set
from rcjax.evaluation.tasks import Benchmark, BenchmarkError, Task

__all__ = ["BENCHMARKS", "Benchmark", "BenchmarkError", "Task", "load_benchmark"]


def load_benchmark(name: str, path: str | Path | None = None) -> Benchmark:
    """A benchmark by its name.

    Args:
      name: key of ``BENCHMARKS``.
      path: its file (JSON lines or a JSON array, gzipped or not); None takes it from the Hugging Face Hub.

    Raises:
      BenchmarkError: no such benchmark, file, or record; one sentence that names it and the mend.
    """
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(name, BENCHMARKS, n=2) or sorted(BENCHMARKS)
        raise BenchmarkError(f"there is no benchmark {name!r}; did you mean {' or '.join(near)}?")
    return BENCHMARKS[name](name, None if path is None else Path(path))


BENCHMARKS: dict[str, Callable[[str, Path | None], Benchmark]] = {
    "humaneval": read_python_set,
    "humaneval+": read_python_set,
    "mbpp": read_python_set,
    "mbpp+": read_python_set,
}
