"""The quickest of rows a device x remat x mesh that fits: bounds first, the compiler for what is left."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from rcjax.model import LlamaConfig
from rcjax.packing import RowTooShortError
from rcjax.plan import roofline
from rcjax.plan.estimate import Plan, held_bytes, make_plan, size
from rcjax.plan.programs import Setting, prepare_setting
from rcjax.plan.topology import HOST_GPUS, Topology

ROWS = (1, 2, 4, 8)
REMATS = ("none", "dots", "full")  # not `offload`: nothing is known of the time that transfers to the host take
TENSOR = (1, 2, 4, 8)
# Of a device's memory, what a winner may take: it is compiled fast, and a run has buffers besides.
ROOM = 0.9


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run the training."""

    rows: int
    remat: str
    mesh: tuple[tuple[str, int], ...]

    def flags(self) -> list[str]:
        """That launch.py takes it by."""
        mesh = [f"--config.mesh.{axis}={size}" for axis, size in self.mesh]
        return [f"--config.packing.rows_per_device={self.rows}", f"--config.train.remat={self.remat}", *mesh]

    def applied(self, config: ConfigDict) -> ConfigDict:
        """``config`` with it."""
        config = config.copy_and_resolve_references()
        config.packing.rows_per_device = self.rows
        config.train.remat = self.remat
        config.mesh.update(dict(self.mesh))
        return config


@dataclasses.dataclass(frozen=True)
class Found:
    """A candidate and what came of it.

    Attributes:
      least_memory: bytes that it takes at least.
      least_seconds: that a token takes at least.
      plan: None where it was not compiled.
    """

    candidate: Candidate
    least_memory: float
    least_seconds: float
    plan: Plan | None = None

    HEADER = (
        f"{'rows':>4} {'remat':<6} {'mesh':<32}{'peak':>11} {'fits':<5}{'us a token':>11} {'binds':<8}"
        f"{'utilisation':>12}"
    )

    @property
    def fits(self) -> bool:
        """Whether it was compiled and leaves room."""
        return self.plan is not None and self.plan.fits and self.plan.share <= ROOM

    @property
    def seconds_a_token(self) -> float:
        """Estimated: half-way between all that overlaps and nothing that does."""
        plan = self.plan
        return (plan.microbatch.middle * plan.load.microbatches + plan.optimizer.middle) / plan.load.tokens

    def line(self) -> str:
        """Its line of the table."""
        mesh = " ".join(f"{axis}={size}" for axis, size in self.candidate.mesh if size > 1) or "one device"
        plan, start = self.plan, f"{self.candidate.rows:>4} {self.candidate.remat:<6} {mesh:<32}"
        start += f"{size(plan.memory.peak):>11} {'yes' if self.fits else 'no':<5}"
        if plan.accumulate.refused:
            return start
        figures = f"{self.seconds_a_token * 1e6:>11.2f} {plan.microbatch.binding:<8}"
        return f"{start}{figures}{plan.utilisation(plan.seconds):>12.1%}"


def search(config: ConfigDict, topology: Topology, on_try: Callable[[Found], None]) -> list[Found]:
    """All candidates, those compiled that may fit and may be the quickest.

    What a candidate's shapes say of its memory and time are bounds, and compiling only adds to them: so they are
    compiled in the order of their bounds, until the next one's is no better than the best that fits.

    Args:
      on_try: gets each that was compiled.

    Raises:
      ValueError: the config can not be planned, whatever the candidate.
    """
    found: list[Found] = []
    best = float("inf")
    for one, setting in sorted(_bounded(config, topology), key=lambda pair: _order(pair[0])):
        if one.least_memory > ROOM * topology.chip.hbm or one.least_seconds >= best:
            found.append(one)
            continue
        one = dataclasses.replace(one, plan=make_plan(setting))
        found.append(one)
        on_try(one)
        if one.fits:
            best = min(best, one.seconds_a_token)
    return found


def _order(one: Found) -> tuple[float, float]:
    return one.least_seconds, one.least_memory


def _bounded(config: ConfigDict, topology: Topology) -> Iterator[tuple[Found, Setting]]:
    """Candidates with their bounds. Those that divide nothing evenly are left out; if all are, the last says why."""
    refusal: ValueError | None = None
    some = False
    for rows, remat, mesh in itertools.product(ROWS, REMATS, meshes(topology.size, topology.platform)):
        candidate = Candidate(rows, remat, mesh)
        try:
            setting = prepare_setting(candidate.applied(config), topology)
            bounds = least_memory(setting), least_seconds(setting)
        except RowTooShortError:
            raise
        except ValueError as error:
            refusal = error
            continue
        some = True
        yield Found(candidate, *bounds), setting
    if not some and refusal is not None:
        raise refusal


def meshes(devices: int, platform: str) -> list[tuple[tuple[str, int], ...]]:
    """Splits of all devices into data, fsdp and tensor; on GPUs tensor, and fsdp, stay in a host or span all."""
    found = []
    for tensor in TENSOR:
        if devices % tensor:
            continue
        rest = devices // tensor
        shares = {rest, max(1, min(rest, HOST_GPUS // tensor))} if platform == "gpu" else {rest, max(1, rest // 4)}
        for fsdp in sorted(shares, reverse=True):
            if rest % fsdp == 0:
                found.append((("replica", 1), ("data", rest // fsdp), ("fsdp", fsdp), ("tensor", tensor)))
    return found


def least_memory(setting: Setting) -> float:
    """Bytes of a device: all that is held, and what the backward pass is sure to find kept."""
    config, model = setting.config, setting.program.model
    mesh = dict(setting.mesh.shape)
    slots = config.packing.rows_per_device * config.packing.row_length
    width = 2 if config.train.compute_dtype == "bfloat16" else 4
    kept = model.num_layers * slots * kept_elements(model, config.train.remat, mesh["tensor"]) * width
    return sum(held_bytes(setting).values()) + kept


def kept_elements(model: LlamaConfig, remat: str, tensor: int) -> float:
    """Of a slot and a layer, for the backward pass: its input; the results of products; what else they are made of."""
    heads, kv_heads = model.num_heads * model.head_dim, 2 * model.num_kv_heads * model.head_dim
    if remat == "full":
        return model.hidden_size
    products = model.hidden_size + (heads + kv_heads + 2 * model.intermediate_size) / tensor
    if remat == "dots":
        return model.hidden_size + products
    return model.hidden_size + products + (heads + model.intermediate_size) / tensor


def least_seconds(setting: Setting) -> float:
    """Of a token, were there no wires."""
    from rcjax.train.program import objective_of

    config, program = setting.config, setting.program
    load = roofline.load_of(config, objective_of(config.objective), setting.rows)
    work = roofline.microbatch_work(
        config, program.model, program.loss.teacher, load, dict(setting.mesh.shape), program.loss.attention
    )
    places, dtype = list(setting.mesh.devices.flat), config.train.compute_dtype
    times = roofline.times(setting.topology, work.executed_flops, work.memory_bytes, (), places, dtype)
    return times.middle * load.microbatches / load.tokens
