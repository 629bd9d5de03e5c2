"""Shared fixtures: where the reference's numbers and real problem sets are, if they are at hand."""

import os
from pathlib import Path

# Eight virtual devices for mesh tests, and quick compilation, since tests compile much and run little. Must be set
# before jax starts.
QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {QUICK_TO_COMPILE}")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads would spin against those of jax
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


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
