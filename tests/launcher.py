"""Runs ``launch.py`` as a process of its own, without the seconds in which every process imports the same packages.

A server that has imported them, and has done nothing with them, forks a process a call. What is forked begins where
``python launch.py`` would after its imports: with an environment, arguments and files of its own, and no devices yet.
"""

from __future__ import annotations

import atexit
import dataclasses
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRELOADED = ["tests.launcher_imports"]


@dataclasses.dataclass
class Launched:
    """A process that was started; as much of ``subprocess.Popen`` as tests need."""

    args: list[str]
    process: multiprocessing.Process
    files: tuple[Path, Path]

    @property
    def pid(self) -> int:
        return self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.process.exitcode is None:
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.process.exitcode

    def said(self) -> tuple[str, str]:
        """Standard output and error, so far."""
        return tuple(file.read_text(errors="replace") for file in self.files)


def start(arguments: list[str], environment: dict[str, str], cwd: Path = ROOT) -> Launched:
    """``python launch.py ARGUMENTS``."""
    directory = Path(tempfile.mkdtemp(prefix="launched-"))
    files = directory / "stdout", directory / "stderr"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_main, args=(arguments, environment, str(cwd), *map(str, files)))
    for file in files:
        file.touch()
    process.start()
    launched = Launched(["launch.py", *arguments], process, files)
    # Before multiprocessing waits for it: a test that failed may have left it at work.
    atexit.register(_clear_away, launched, directory)
    return launched


def _clear_away(launched: Launched, directory: Path) -> None:
    launched.kill()
    shutil.rmtree(directory, ignore_errors=True)


def run(arguments: list[str], environment: dict[str, str], timeout: float = 400) -> subprocess.CompletedProcess:
    """Starts it and waits for its end."""
    launched = start(arguments, environment)
    try:
        code = launched.wait(timeout)
    except subprocess.TimeoutExpired:
        launched.kill()
        raise
    return subprocess.CompletedProcess(launched.args, code, *launched.said())


def _main(arguments: list[str], environment: dict[str, str], cwd: str, stdout: str, stderr: str) -> None:
    import runpy

    for number, name in ((1, stdout), (2, stderr)):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ.clear()
    os.environ.update({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} | environment)  # else it would start itself again
    config = sys.modules["jax"].config  # it has read the environment of the server
    config.update("jax_platforms", environment.get("JAX_PLATFORMS"))
    seconds = environment.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", 1.0)
    config.update("jax_persistent_cache_min_compile_time_secs", float(seconds))
    os.chdir(cwd)
    sys.argv = ["launch.py", *arguments]
    runpy.run_path("launch.py", run_name="__main__")
