"""Shared fixtures: where the reference's numbers and real problem sets are, if they are at hand."""

import atexit
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

# Eight virtual devices for mesh tests, and quick compilation, since tests compile much and run little. Must be set
# before jax starts.
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if metadata.version("jaxlib").startswith("0.10."):  # a later one ends the process over a flag that it does not know
    QUICK_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {QUICK_TO_COMPILE}")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads would spin against those of jax
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# What one process of these tests has compiled, the others find; whatever a user has compiled is left alone.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent

# Files that take long, the longest first: `make test` gives out files in this order, so that none of them is left
# for the end, when the other processes have nothing to do.
LONG = (
    "train/test_durability.py",
    "test_golden.py",
    "test_several_processes.py",
    "test_ablation.py",
    "test_launch.py",
    "test_layouts.py",
    "test_teachers.py",
    "evaluation/test_benchmark_run.py",
    "train/test_evaluation_in_run.py",
    "test_sampling.py",
    "test_decode.py",
    "test_losses.py",
    "evaluation/test_programs.py",
    "data_gen/test_checkpoint_teacher.py",
    "test_equalities.py",
    "test_real_weights.py",
    "plan/test_plan.py",
    "test_launch_import.py",
    "test_golden_sharding.py",
    "data_gen/test_journal.py",
    "test_host_devices.py",
)


def pytest_xdist_auto_num_workers() -> int:
    """Of ``-n auto``: one more than there are cores, since tests wait for processes, sandboxes and clocks a third of
    the time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, each in its own order."""
    places = {ROOT / "tests" / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def shared_directory() -> Path:
    """Material that developers have and users do not: RCJAX_SHARED, by default beside the repository."""
    return Path(os.environ.get("RCJAX_SHARED", ROOT.parent / "shared"))


def golden_directory() -> Path:
    """Numbers of the reference implementation: RCJAX_GOLDEN, by default in the shared directory."""
    return Path(os.environ.get("RCJAX_GOLDEN", shared_directory() / "golden"))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The golden directory, or a skip that says what is missing."""
    directory = golden_directory()
    if not (directory / "samples.jsonl").exists():
        pytest.skip(f"reference numbers not at hand ({directory}); set RCJAX_GOLDEN to run this")
    return directory


@pytest.fixture
def x64():
    """float64 inside the test."""
    import jax

    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
