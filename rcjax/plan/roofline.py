"""How long a step takes at least: FLOPs, bytes of memory and bytes on the wire, each over what a chip can do at most.

The three are taken to overlap fully, so the longest of them is the step's time: a bound that no run beats, and the
utilisation that follows is one that no run exceeds. The sum of the three is given too; runs lie between.

Assumptions:

- Rows are full. Every example is ``config.data.max_length`` long and, where the objective asks for a student's view,
  hides nothing: what the first step of a curriculum with the longest examples would cost, and more than any later one.
- Every slot carries a label. The output projection is a small part of a large model's work.
- FLOPs are those of matrix products. Executed are, besides the model's own, products computed again in the backward
  pass (``train.remat``), those of the TPU's kernel of attention over the whole causal triangle of a row, whose segments
  it only masks, and what the kernels' backward passes compute twice.
- Memory: every product reads its operands from memory and writes its result there once, norms, rotary embedding and
  gates likewise; weights are cast (and gathered) once a pass; the optimizer reads and writes all it has once.
- Wire: what the compiled program sends (``rcjax.plan.hlo``), over all links of the grid's dimensions that a group
  spans, both ways at once; halved along a dimension whose ends are not joined.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from rcjax.model import LlamaConfig
from rcjax.model.flops import PEAK_BFLOAT16, forward_flops
from rcjax.objective import Objective
from rcjax.packing import RowTooShortError
from rcjax.plan.hlo import Collective
from rcjax.plan.topology import HOST_GPUS, Topology

BACKWARD = 2  # products of the backward pass for each one of the forward pass
# Of attention's kernels, scores and mixing being 2 products: gradients of queries, and of keys and values, each compute
# scores and d_weights again, 3 and 4 products.
KERNEL_BACKWARD = {"splash": 3.5, "flash": 3.5, "tiles": 2.5, "blocks": 2.0}
TILE = {"splash": 512, "flash": 128, "tiles": 128, "blocks": 128}
FLOAT32 = 4


@dataclasses.dataclass(frozen=True)
class Load:
    """What a step is made of.

    Attributes:
      examples: of an optimizer step.
      views: of an example that the network which is trained reads.
      length: slots of a view.
      examples_per_row: that fit.
      rows: of a microbatch, over all devices.
      microbatches: of an optimizer step.
    """

    examples: int
    views: int
    length: int
    examples_per_row: int
    rows: int
    microbatches: int

    @property
    def tokens(self) -> int:
        """Slots in use, of an optimizer step."""
        return self.examples * self.views * self.length


def load_of(config: ConfigDict, objective: Objective, rows: int) -> Load:
    """The load of an optimizer step of ``config`` with ``rows`` rows a microbatch.

    Raises:
      RowTooShortError: the longest example does not fit a row.
    """
    views, length = (2 if objective.uses_student else 1), config.data.max_length - 1
    fitting = config.packing.row_length // (views * length)
    if fitting < 1:
        raise RowTooShortError(
            f"config.packing.row_length is {config.packing.row_length}, but the views of an example of "
            f"config.data.max_length={config.data.max_length} tokens can take {views * length} slots; raise it, or "
            "lower config.data.max_length"
        )
    examples = config.train.batch_size
    return Load(examples, views, length, fitting, rows, -(-examples // (fitting * rows)))


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one device.

    Attributes:
      model_flops: that the formulas ask for.
      executed_flops: that the device works off.
      memory_bytes: read and written.
    """

    model_flops: float
    executed_flops: float
    memory_bytes: float


def microbatch_work(
    config: ConfigDict,
    model: LlamaConfig,
    teacher: LlamaConfig | None,
    load: Load,
    mesh: Mapping[str, int],
    attention: str,
) -> Work:
    """One microbatch, gradients added up.

    Args:
      teacher: another network that teaches, or None.
      mesh: size by axis.
      attention: path, a key of ``KERNEL_BACKWARD``.
    """
    devices = math.prod(mesh.values())
    slots, rows = config.packing.row_length, load.rows
    pairs_of_view = load.length * (load.length + 1) // 2
    if attention in ("tiles", "flash"):  # leave tiles out in which segments do not meet themselves
        pairs_of_row = load.examples_per_row * load.views * load.length * (load.length + TILE[attention]) // 2
    else:
        pairs_of_row = slots * (slots + TILE[attention]) // 2

    def forward(tokens=0, pairs=0, labels=0, network=model) -> float:
        return forward_flops(network, tokens=tokens, pairs=pairs, labels=labels)

    again = config.train.remat == "full"
    kernel_again = config.train.remat != "none"
    used = rows * load.examples_per_row * load.views
    useful = (1 + BACKWARD) * forward(used * load.length, used * pairs_of_view, used * load.length)
    executed = (1 + BACKWARD + again) * forward(tokens=rows * slots)
    executed += (1 + KERNEL_BACKWARD[attention] + kernel_again) * forward(pairs=rows * pairs_of_row)
    executed += (1 + BACKWARD) * forward(labels=rows * slots)
    memory = _training_bytes(config, model, rows * slots, mesh)
    if teacher is not None:
        taught = rows * load.examples_per_row
        useful += forward(taught * load.length, taught * pairs_of_view, taught * load.length, network=teacher)
        executed += forward(taught * load.length, rows * pairs_of_row, taught * load.length, network=teacher)
        memory += _pass_bytes(config, teacher, taught * load.length, mesh)
    return Work(useful / devices, executed / devices, memory)


def _training_bytes(config: ConfigDict, model: LlamaConfig, slots: int, mesh: Mapping[str, int]) -> float:
    """Memory traffic of one device for ``slots`` slots of all: forward, again where asked for, backward, sums."""
    passes = 1 + (config.train.remat == "full")
    split = mesh["fsdp"] * mesh["tensor"]
    whole = model.num_params / mesh["tensor"]  # of a gathered copy
    width = _width(config)
    # Backward: products for the inputs and for the weights, which write gradients.
    total = passes * _pass_bytes(config, model, slots, mesh) + 2 * _activation_bytes(config, model, slots, mesh)
    total += _weight_bytes(config, model, mesh) + 2 * width * whole + FLOAT32 * model.num_params / split
    total += 3 * FLOAT32 * model.num_params / split  # sums = sums + gradients
    # Of each chunk of labels: the projection, read forward and twice backward, and its gradient's float32 sums.
    own = slots * mesh["tensor"] / math.prod(mesh.values())  # slots of a device's rows
    table = model.hidden_size * model.table_size / mesh["tensor"]
    chunks = own / config.objective.chunk
    logits = own * model.table_size / mesh["tensor"] * FLOAT32
    return total + chunks * (3 * width + 2 * FLOAT32) * table + 6 * logits


def _pass_bytes(config: ConfigDict, model: LlamaConfig, slots: int, mesh: Mapping[str, int]) -> float:
    return _weight_bytes(config, model, mesh) + _activation_bytes(config, model, slots, mesh)


def _weight_bytes(config: ConfigDict, model: LlamaConfig, mesh: Mapping[str, int]) -> float:
    """Weights of one pass: read where they live, a gathered copy in the compute dtype written and read."""
    split = mesh["fsdp"] * mesh["tensor"]
    return FLOAT32 * model.num_params / split + 2 * _width(config) * model.num_params / mesh["tensor"]


def _activation_bytes(config: ConfigDict, model: LlamaConfig, slots: int, mesh: Mapping[str, int]) -> float:
    """Activations of one forward pass: every operation's operands and results."""
    own = slots * mesh["tensor"] / math.prod(mesh.values())
    heads = model.num_heads * model.head_dim / mesh["tensor"]
    kv_heads = 2 * model.num_kv_heads * model.head_dim / mesh["tensor"]
    inner = model.intermediate_size / mesh["tensor"]
    # Width D: 2 norms and 2 residual sums (2 + 3 each), input of q, k, v and of gate and up, two projections' results.
    # Query, key, value: product, rotary embedding, kernel; what it mixes is written and read once. Gate, up: product,
    # product of both, read once more.
    elements = 17 * model.hidden_size + 6 * heads + 4 * kv_heads + 6 * inner
    return own * model.num_layers * elements * _width(config)


def update_bytes(own_params: float, *, ema: bool) -> float:
    """Memory traffic of the optimizer on ``own_params`` parameters of a device.

    Norm and update read the sums; parameters and both moments are read and written; sums are zeroed.
    """
    return own_params * FLOAT32 * (2 + 3 * 2 + 1 + (2 if ema else 0))


def _width(config: ConfigDict) -> int:
    return 2 if config.train.compute_dtype == "bfloat16" else FLOAT32


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds that one device computes, moves memory and talks; they may overlap."""

    compute: float
    memory: float
    wire: float

    def __add__(self, other: Times) -> Times:
        return Times(self.compute + other.compute, self.memory + other.memory, self.wire + other.wire)

    def __mul__(self, factor: float) -> Times:
        return Times(self.compute * factor, self.memory * factor, self.wire * factor)

    @property
    def overlapped(self) -> float:
        """The longest: everything else goes on meanwhile."""
        return max(dataclasses.astuple(self))

    @property
    def one_by_one(self) -> float:
        """The sum: nothing goes on meanwhile."""
        return sum(dataclasses.astuple(self))

    @property
    def middle(self) -> float:
        """Between the two: what candidates are compared by, so that what can hide still counts."""
        return (self.overlapped + self.one_by_one) / 2

    @property
    def binding(self) -> str:
        """What takes longest: ``compute``, ``memory`` or ``wire``."""
        return max(dataclasses.asdict(self).items(), key=lambda item: item[1])[0]


def peak(topology: Topology, dtype: str) -> float:
    """Operations a second of one device."""
    chip = topology.chip
    return PEAK_BFLOAT16[chip.kind] * (1.0 if dtype == "bfloat16" else chip.float32_share)


def times(
    topology: Topology,
    flops: float,
    memory_bytes: float,
    found: Iterable[Collective],
    places: Sequence[Any],
    dtype: str,
) -> Times:
    """Of one program on one device.

    Args:
      found: what it sends.
      places: JAX's devices in the mesh's order.
    """
    wire = sum(operation.total / wire_rate(topology, operation, places) for operation in found)
    return Times(flops / peak(topology, dtype), memory_bytes / topology.chip.hbm_rate, wire)


def wire_rate(topology: Topology, operation: Collective, places: Sequence[Any]) -> float:
    """Bytes a second that each device of the operation's group sends at most."""
    chip = topology.chip
    if chip.platform == "gpu":
        hosts = {member // HOST_GPUS for member in operation.members}
        if len(hosts) == 1:
            return chip.link_rate
        return min(chip.link_rate, chip.slow_rate * len(operation.members) / len(hosts))
    if operation.kind == "collective-permute":  # neighbours of a ring, the other way round at the same time
        return 2 * chip.link_rate
    coordinates = [places[member].coords for member in operation.members]
    links = 0
    for along, size in enumerate(topology.grid):
        if len({place[along] for place in coordinates}) > 1:
            links += 2 if size % chip.wrapped == 0 else 1
    return max(1, links) * chip.link_rate
