"""Topologies by name, and what their chips can do: ``v5e:4x4``, ``v5p:4x4x4``, ``h100:64``, ``cpu:8``.

Nothing here touches JAX before ``prepare`` has said what JAX shall start as.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
import sys
import tempfile
from typing import Any

from rcjax.host_devices import FLAG

GIB = 2**30
NO_TPU_COMPILER = "pip install libtpu==0.0.42.1"
NO_GPU_COMPILER = "pip install --no-deps -r requirements-plan.txt"


class TopologyError(ValueError):
    """A topology that can not be planned for; one sentence with the mend."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device of a topology.

    Attributes:
      kind: as JAX names it; ``rcjax.model.flops.PEAK_BFLOAT16`` knows its peak.
      hbm: bytes that programs may use.
      hbm_rate: bytes a second between it and its memory.
      link_rate: bytes a second that one link to a neighbour carries one way; of a GPU, all its links in the host.
      wrapped: sizes of a dimension of the grid from which on, at multiples, its ends are joined to a ring.
      slow_rate: bytes a second of one device's share of the network between hosts (GPU).
      float32_share: peak of products that keep float32 (``rcjax.model.precision``), as a share of that of bfloat16.
      attention: the path that a run on it takes (``rcjax.model.attention.PATHS``).
    """

    platform: str
    kind: str
    hbm: float
    hbm_rate: float
    link_rate: float
    wrapped: int = 0
    slow_rate: float = 0.0
    float32_share: float = 1 / 6
    attention: str = "splash"


# Memory and its rate: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, of which the compiler lets programs have a little
# less (its own messages: "exceeds available HBM (15.75G)"). Links: the same pages' interconnect figure, both ways and
# all links together, as jax-ml.github.io/scaling-book/tpus divides it: 45 GB/s one way on v4 and v5e, 90 on v5p and
# v6e. A product of float32 takes six of bfloat16 on a TPU; a GPU has units for it. H100: NVIDIA's data sheet of the
# SXM version, 900 GB/s of NVLink both ways, and one ConnectX-7 of 400 Gb/s for each GPU as in DGX H100.
CHIPS = {
    "v4": Chip("tpu", "TPU v4", 30.75 * GIB, 1228e9, 45e9, wrapped=4),
    "v5e": Chip("tpu", "TPU v5 lite", 15.75 * GIB, 819e9, 45e9, wrapped=16),
    "v5p": Chip("tpu", "TPU v5", 95.0 * GIB, 2765e9, 90e9, wrapped=4),
    "v6e": Chip("tpu", "TPU v6 lite", 31.25 * GIB, 1640e9, 90e9, wrapped=16),
    "h100": Chip(
        "gpu", "NVIDIA H100", 84978434048, 3352e9, 450e9, slow_rate=50e9, float32_share=67 / 989, attention="flash"
    ),
}
HOST_GPUS = 8
EXAMPLES = "v5e:4x4, v6e:4x4, v4:2x2x4, v5p:4x4x4, h100:8, h100:64, cpu:8"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices that are not there.

    Attributes:
      name: as the user gave it.
      grid: devices along each dimension.
      chip: None for ``cpu``, whose devices are the host's: they show structure, no time.
    """

    name: str
    grid: tuple[int, ...]
    chip: Chip | None

    @property
    def size(self) -> int:
        """Devices."""
        return math.prod(self.grid)

    @property
    def platform(self) -> str:
        """``cpu``, ``gpu`` or ``tpu``."""
        return self.chip.platform if self.chip else "cpu"

    def devices(self) -> list[Any]:
        """JAX's devices, after ``prepare``.

        Raises:
          TopologyError: the compiler is not installed, or knows no such grid.
        """
        import jax
        from jax.experimental import topologies

        if self.platform == "cpu":
            return jax.devices("cpu")[: self.size]
        try:
            if self.platform == "gpu":
                hosts, here = max(1, self.size // HOST_GPUS), min(self.size, HOST_GPUS)
                return topologies.get_topology_desc(
                    platform="cuda",
                    topology_name="h100",
                    target_config=H100,
                    topology=f"1 x {hosts} x {here}",
                ).devices
            # Two cores of a v4 work as one device, as they do by default.
            options = {"chip_config_name": "megacore"} if self.chip.kind == "TPU v4" else {}
            return topologies.get_topology_desc(platform="tpu", topology_name=self.name, **options).devices
        except Exception as error:  # of many kinds, and some hold many lines
            reason = str(error).strip().splitlines()[0]
            raise TopologyError(
                f"--topology={self.name}: the compiler knows no such topology ({reason}); try one of {EXAMPLES}"
            ) from error


def parse(name: str) -> Topology:
    """Reads ``CHIP:GRID``.

    Raises:
      TopologyError: an unknown chip, or no grid.
    """
    chip, _, grid = name.partition(":")
    if chip not in (*CHIPS, "cpu"):
        known = ", ".join((*CHIPS, "cpu"))
        raise TopologyError(f"--topology={name}: unknown chip {chip!r}; known are {known}, e.g. {EXAMPLES}")
    sizes = grid.split("x")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise TopologyError(f"--topology={name}: expected {chip}:DEVICES or {chip}:AxB; try one of {EXAMPLES}")
    found = Topology(name, tuple(map(int, sizes)), CHIPS.get(chip))
    if found.platform != "tpu" and len(sizes) > 1:
        raise TopologyError(f"--topology={name}: give the number of devices alone, {chip}:{found.size}")
    if found.platform == "gpu" and found.size > HOST_GPUS and found.size % HOST_GPUS:
        raise TopologyError(f"--topology={name}: hosts have {HOST_GPUS} GPUs each; give a multiple of it")
    return found


def prepare(topology: Topology) -> None:
    """Makes JAX start on the CPU, with as many devices as ``cpu:N`` asks for. To be called before JAX's first use.

    Raises:
      TopologyError: the compiler is not installed.
    """
    package, mend = {"tpu": ("libtpu", NO_TPU_COMPILER), "gpu": ("jax_plugins", NO_GPU_COMPILER)}.get(
        topology.platform, ("jax", "")
    )
    if importlib.util.find_spec(package) is None:
        raise TopologyError(
            f"--topology={topology.name} needs the compiler of its chips, which is not installed: {mend}"
        )
    os.environ["JAX_PLATFORMS"] = "cpu"
    # What is compiled for elsewhere is no use in this machine's cache, and figures are to be the compiler's own.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    if topology.platform == "cpu":
        os.environ["JAX_NUM_CPU_DEVICES"] = str(topology.size)
        os.environ["XLA_FLAGS"] = re.sub(rf"--{FLAG}=\d+", "", os.environ.get("XLA_FLAGS", ""))
    # libtpu would ask the cloud what machine this is, and complain at length that it is none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_LOG_DIR", tempfile.gettempdir())
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    if "jax" in sys.modules:  # it has read the environment already
        config = sys.modules["jax"].config
        config.update("jax_platforms", "cpu")
        config.update("jax_enable_compilation_cache", False)
        if topology.platform == "cpu":
            config.update("jax_num_cpu_devices", topology.size)


# What the GPU compiler has to know of the device, from XLA's public description of an H100 SXM of 80 GB.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 patch: 0 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
