"""A CPU shows a device a core, unless the user says otherwise."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
from rcjax.host_devices import one_device_per_core
one_device_per_core()
import jax
print(jax.device_count())
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, min(len(os.sched_getaffinity(0)), 8)),
        ({"JAX_NUM_CPU_DEVICES": "3"}, 3),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, 5),
    ],
)
def test_number_of_devices(given, expected):
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    environment |= {"JAX_PLATFORMS": "cpu", **given}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == expected
