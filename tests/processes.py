"""Several real processes on this machine that are one run."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

from tests import launcher
from tests.conftest import QUICK_TO_COMPILE

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 240


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environment(devices: int, cache: Path | None = None) -> dict[str, str]:
    """Of a process with so many CPU devices; ``cache`` keeps what was compiled."""
    flags = f"--xla_force_host_platform_device_count={devices} {QUICK_TO_COMPILE}"
    own = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache or "")}
    return os.environ | own | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def places(kind: str, count: int) -> list[tuple[list[str], dict[str, str]]]:
    """Flags and variables of each process of a run, as a cluster of this kind has them."""
    port = free_port()
    if kind == "flags":
        flags = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
        return [([*flags, f"--process_id={index}"], {}) for index in range(count)]
    if kind == "slurm":
        job = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": str(count), "SLURM_STEP_NODELIST": "localhost"}
        own = [{"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)} for index in range(count)]
    else:
        job = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911", "OMPI_COMM_WORLD_SIZE": str(count)}
        own = [{"OMPI_COMM_WORLD_RANK": str(index), "OMPI_COMM_WORLD_LOCAL_RANK": str(index)} for index in range(count)]
    return [(["--distributed"], job | mine | {"JAX_COORDINATOR_PORT": str(port)}) for mine in own]


def start(commands: list[list[str]], environments: list[dict[str, str]]) -> list[subprocess.Popen]:
    """Starts processes, their output to be read with ``ended``."""
    return [
        subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command, own in zip(commands, environments, strict=True)
    ]


def launched(processes: list[launcher.Launched], timeout: float = TIMEOUT) -> list[tuple[int, str, str]]:
    """The same of processes of ``launch.py`` that ``launcher.start`` has started."""
    try:
        deadline = time.monotonic() + timeout
        codes = [process.wait(max(1, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(code, *process.said()) for code, process in zip(codes, processes, strict=True)]


def ended(processes: list[subprocess.Popen], timeout: float = TIMEOUT) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each; all are ended when one takes too long."""
    try:
        deadline = time.monotonic() + timeout
        outputs = [process.communicate(timeout=max(1, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]
