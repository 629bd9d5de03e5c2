"""The cores of a CPU as devices of their own: a training step is quicker than with all cores as one device.

Given one device, XLA splits large matrix products over the cores, and little else: a loop over tiles of attention, or
what is done element by element on a small model, leaves all cores but one idle. With a device a core, each works rows
of its own from end to end, as on a mesh of accelerators; gradients are added up once a microbatch.
"""

from __future__ import annotations

import os
import re
import sys

VARIABLE = "JAX_NUM_CPU_DEVICES"
THREADS = "NPROC"  # how many XLA's pool has, if more than there are devices
MOST = 8  # every device wants rows of its own; products are split over the other cores as before
FLAG = "xla_force_host_platform_device_count"


def one_device_per_core(cores: int | None = None) -> None:
    """Makes JAX's CPU backend show a device a core, ``MOST`` at most. To be called before the first array is made.

    Where ``JAX_NUM_CPU_DEVICES`` or ``XLA_FLAGS`` say how many there are to be, it leaves it at that.

    XLA runs all devices on one pool of threads, as many as cores or devices. A device that waits for another in a
    collective operation holds its thread; were there no more, the other's products, which are split over the pool,
    would wait for ever. So the pool gets twice as many, unless ``NPROC`` says how many.

    Args:
      cores: that are this process's; None: all that it may run on.
    """
    cores = cores or usable_cores()
    forced = re.search(rf"{FLAG}=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if VARIABLE not in os.environ and not forced:
        os.environ[VARIABLE] = str(min(cores, MOST))
        if "jax" in sys.modules:  # it has read the environment already
            sys.modules["jax"].config.update(VARIABLE.lower(), min(cores, MOST))
    devices = int(forced[1]) if forced else int(os.environ[VARIABLE])
    if devices > 1:
        os.environ.setdefault(THREADS, str(2 * max(cores, devices)))


def usable_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
