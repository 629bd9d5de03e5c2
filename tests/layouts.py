"""Small models under every preset: their programs, compiled once for all tests that run them or read them."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import base
from rcjax import model as llama
from rcjax.data.loader import BatchSettings, StepBatch, StepSource
from rcjax.layout import PRESETS, mesh_of
from rcjax.model import LlamaConfig
from rcjax.sharding import row_shards
from rcjax.train.loop import run_step
from rcjax.train.program import Program, make_curriculum, make_program, objective_of
from rcjax.train.state import Average, TrainState, abstract_params, abstract_state, make_optimizer
from rcjax.train.step import Steps
from tests.examples import VOCABULARY, random_examples

DEVICES = 8
ROW = 256
COLLECTIVE = re.compile(
    r"= (?P<shapes>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
LLAMA = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
)
# Tied tables, biases and norms of heads: whatever a family has besides. The teacher is another network, of one layer.
EVERYTHING = dataclasses.replace(
    LLAMA, family="qwen3", tie_embeddings=True, qkv_bias=True, output_bias=True, qk_norm=True
)
TEACHER = dataclasses.replace(LLAMA, num_layers=1, hidden_size=8)
KINDS = {
    "llama, its own teacher": (LLAMA, "self"),
    "all kinds of tensors, taught by its average": (EVERYTHING, "ema"),
    "llama, taught by another": (LLAMA, "frozen"),
}
OWN, AVERAGE, OTHER = KINDS
# Every preset once; what other kinds add, under those that differ most. Each takes seconds to compile.
CASES = [(OWN, preset) for preset in PRESETS]
CASES += [(AVERAGE, preset) for preset in ("zero1", "fsdp+tensor", "hybrid")] + [(OTHER, "zero1")]
THREE_AXES = "three axes"  # no preset's: groups that share nothing, inside of which parameters are split both ways
CASES += [(OWN, THREE_AXES), (AVERAGE, THREE_AXES)]
MESHES = {"hybrid": dict(replica=2), THREE_AXES: dict(data=2, fsdp=2, tensor=2)}


def config_of(preset: str, teacher: str = "self") -> ConfigDict:
    """A config of small steps under a preset, or a name of ``MESHES``; hybrid gets two groups."""
    config = base.get_config()
    config.sharding.preset = preset if preset in PRESETS else ""
    config.mesh.update(MESHES.get(preset, {}))
    config.teacher.name = teacher
    config.packing.row_length = ROW
    config.packing.cuts = 1
    config.objective.chunk = 16
    config.train.batch_size = 40
    config.optimizer.learning_rate = 1e-2
    # Updates are smooth in gradients, so that their last bits do not decide about a parameter's.
    config.optimizer.eps = 1e-3
    return config


@dataclasses.dataclass(frozen=True)
class Run:
    """A program on its mesh.

    Attributes:
      steps: compiled ahead of time.
      texts: the compiled programs ``accumulate`` and ``update``, in words.
    """

    config: ConfigDict
    program: Program
    steps: Steps
    texts: dict[str, str]
    teacher_params: Any

    def start(self) -> TrainState:
        """The state before the first step, the same under every preset."""
        return jax.device_put(first_state(self.program.model, self.program.average), self.program.shardings)

    def abstract(self) -> TrainState:
        """What a checkpoint is restored into."""
        return abstract_state(self.program.model, self.program.tx, self.program.shardings)

    def step(self, state: TrainState, number: int) -> tuple[TrainState, float]:
        """One optimizer step; returns the loss, too."""
        batch = self._batch(number)
        assert batch.microbatches > 1
        with jax.set_mesh(self.program.mesh):
            state, _, metrics = run_step(self.steps, state, self.sums(), batch, self.teacher_params)
        return state, float(metrics["loss"])

    def sums(self) -> dict[str, Any]:
        """Before the first microbatch."""
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(self.steps.zeros))
        return jax.device_put(zeros, self.steps.sums_shardings)

    @functools.cached_property
    def _batches(self) -> StepSource:
        return batches(self.config, row_shards(self.program.mesh))

    def _batch(self, number: int) -> StepBatch:
        return self._batches[number]


def batches(config: ConfigDict, rows: int) -> StepSource:
    """The steps of random examples, in microbatches of ``rows`` rows, two at least."""
    objective = objective_of(config.objective)
    settings = BatchSettings(
        objective=objective,
        curriculum=make_curriculum(config.curriculum, objective),
        total_steps=4,
        batch_size=config.train.batch_size,
        row_length=ROW,
        rows_per_microbatch=rows,
        normalisation="example",
        seed=0,
        own_teacher=config.teacher.name == "self",
        cuts=config.packing.cuts,
    )
    # Another network reads every microbatch where all examples have something to distil: one program serves all.
    examples = random_examples(5, 60, reflection_share=0.7 if settings.own_teacher else 1.0)
    return StepSource([examples], [1], settings)


@functools.cache
def drawn(model: LlamaConfig, seed: int) -> Any:
    """Parameters on the host."""
    return on_host(jax.jit(functools.partial(llama.init_params, model))(jax.random.key(seed)))


@functools.cache
def first_state(model: LlamaConfig, average: Average | None) -> TrainState:
    """The state before the first step, on the host."""
    params = drawn(model, 3)
    tx, _ = make_optimizer(config_of("").optimizer, 4)
    opt_state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(tx.init, params))
    return TrainState(np.int32(0), np.int32(0), params, opt_state, params if average else None)


@functools.cache
def run_of(kind: str, preset: str | None) -> Run:
    """The programs of a kind of ``KINDS`` under a preset on eight devices, or on one with None."""
    model, teacher = KINDS[kind]
    config = config_of(preset or "", teacher)
    mesh = mesh_of(config, jax.devices()[: DEVICES if preset is not None else 1])
    other = TEACHER if teacher == "frozen" else None
    program = make_program(config, model, mesh, 4, teacher=other, scan_layers=True)
    steps = program.steps
    state = abstract_state(model, program.tx, program.shardings)
    shapes = jax.eval_shape(steps.zeros)
    sums = jax.tree.map(
        lambda shape, place: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place),
        shapes,
        steps.sums_shardings,
    )
    arrays = batches(config, row_shards(mesh))[0].microbatch(0)
    microbatch = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=steps.row_sharding)
        for name, array in arrays.items()
    }
    taught_by = abstract_params(other, program.teacher) if other else state.ema
    with jax.set_mesh(mesh):
        accumulate = steps.accumulate.lower(state.params, sums, microbatch, taught_by).compile()
        update = steps.update.lower(state, sums).compile()
        teacher_params = None
        if other:
            teacher_params = jax.device_put(jax.tree.map(lambda leaf: 5 * leaf, drawn(other, 7)), program.teacher)
    steps = dataclasses.replace(steps, accumulate=accumulate, update=update)
    texts = {"accumulate": accumulate.as_text(), "update": update.as_text()}
    return Run(config, program, steps, texts, teacher_params)


def collectives(text: str) -> Counter[str]:
    """How often each kind of exchange between devices stands in a compiled program; bodies of loops count once."""
    return Counter(match["kind"] for match in COLLECTIVE.finditer(text))


def shapes_sent(text: str, kind: str) -> list[tuple[int, ...]]:
    """The shapes that exchanges of one kind give."""
    found = [match["shapes"] for match in COLLECTIVE.finditer(text) if match["kind"] == kind]
    return [
        tuple(map(int, filter(None, shape.split(","))))
        for shapes in found
        for shape in re.findall(r"\w+\[([\d,]*)\]", shapes)
    ]


def on_host(tree: Any) -> Any:
    """Arrays of a tree, whole, as numpy's."""
    return jax.tree.map(np.asarray, tree)
