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


GENERATION = """
from rcjax.host_devices import one_device_per_core
one_device_per_core()
import jax
from jax.sharding import NamedSharding, PartitionSpec
from rcjax.decode import generate
from rcjax.model import LlamaConfig
from rcjax.model.llama import init_params
from rcjax.sharding import make_mesh

config = LlamaConfig(vocab_size=1536, hidden_size=128, intermediate_size=384, num_layers=4, num_heads=4, num_kv_heads=4,
                     head_dim=32, tie_embeddings=True)
everywhere = NamedSharding(make_mesh({"data": -1}), PartitionSpec())
params = jax.jit(lambda key: init_params(config, key), out_shardings=everywhere)(jax.random.key(0))
prompts = [[1 + (7 * i + j) % 1500 for j in range(70 + 9 * (i % 13))] for i in range(200)]
print(sum(map(len, generate(config, params, prompts, max_new_tokens=8, stop_ids=[0], batch_size=64))))
"""


def test_devices_that_wait_for_each_other_leave_threads_to_work():
    """With no more threads than devices, XLA ends such a process after 40 seconds."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "NPROC")}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(max(2, len(os.sched_getaffinity(0))))}
    done = subprocess.run([sys.executable, "-c", GENERATION], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 0 < int(done.stdout) <= 200 * 8
