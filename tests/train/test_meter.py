"""The trainer's own measurements: operations counted in the traced program, work counted against whole views."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from rcjax import model as llama
from rcjax.curriculum import Curriculum
from rcjax.data.loader import BatchSettings, StepSource
from rcjax.model import LlamaConfig
from rcjax.model.flops import forward_flops, peak_flops
from rcjax.objective import make_objective
from rcjax.train.meter import Meter
from rcjax.views import Work, build_views, student_mask, work_of
from tests.examples import random_examples
from tests.oracles import dense_llama

CONFIG = LlamaConfig(
    vocab_size=96, hidden_size=32, intermediate_size=56, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=12
)


def dot_flops(jaxpr) -> int:
    """Operations of every matrix product in a traced program, those of its inner programs included."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr)
        ):
            if isinstance(inner, core.ClosedJaxpr):
                inner = inner.jaxpr
            if isinstance(inner, core.Jaxpr):
                total += dot_flops(inner)
    return total


def test_counted_operations_are_those_of_the_plain_program():
    """The oracle makes all [L, L] scores, so there every query has L pairs."""
    batch, length = 2, 24
    params = llama.init_params(CONFIG, jax.random.key(0))
    tokens = jnp.zeros((batch, length), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))

    def loss(params):
        hidden = dense_llama(CONFIG, params, tokens, positions, jnp.ones((batch, length, length), bool))
        return jnp.sum(hidden @ llama.head_kernel(CONFIG, params)[:, : CONFIG.vocab_size])

    ours = forward_flops(CONFIG, tokens=batch * length, pairs=batch * length**2, labels=batch * length)
    assert dot_flops(jax.make_jaxpr(loss)(params).jaxpr) == ours
    both = dot_flops(jax.make_jaxpr(jax.value_and_grad(loss))(params).jaxpr)
    assert both == 3 * ours


@pytest.mark.parametrize("name", ["block", "all", "none", "random_token"])
def test_what_is_computed_and_what_is_spared_make_two_whole_views(name):
    objective = make_objective("reference")
    for rate in (0.0, 0.4, 1.0):
        views, whole = [], Work()
        for number, example in enumerate(random_examples(seed=3, count=20)):
            reflection = example.kind == "reflection"
            rng = np.random.default_rng(number)
            mask = student_mask(example, Curriculum(name), rate, rng) if reflection else None
            views.append(build_views(example, objective, mask))
            for _ in range(2 if reflection else 1):
                whole += Work.of(len(example) - 1)
        trained, taught, spared = work_of(views)
        assert taught == Work()
        assert trained.tokens == sum(view.slots for view in views)
        assert dataclasses.replace(trained + spared, labels=0) == whole
        assert trained.labels == sum(len(v.single_slots) + 2 * len(v.pair_targets) for v in views)
        assert (spared == Work()) == (name == "none")


def test_rates_of_a_step():
    examples = random_examples(seed=5, count=12)
    settings = BatchSettings(
        objective=make_objective("reference"),
        curriculum=Curriculum("all"),
        total_steps=4,
        batch_size=6,
        row_length=256,
        rows_per_microbatch=2,
        normalisation="example",
        seed=0,
        own_teacher=False,
    )
    batch = StepSource([examples], [1], settings)[2]
    rates = Meter(CONFIG, CONFIG, peak=1e9).rates(batch, seconds=0.5, waited=0.05)
    useful = 3 * forward_flops(CONFIG, **dataclasses.asdict(batch.work))
    useful += forward_flops(CONFIG, **dataclasses.asdict(batch.taught))
    assert batch.taught.tokens > 0
    assert rates["flops_per_second"] == pytest.approx(useful / 0.5)
    assert rates["utilisation"] == pytest.approx(useful / 0.5 / 1e9)
    assert rates["input_wait"] == pytest.approx(0.1)
    assert rates["examples_per_second"] == 12
    assert rates["tokens_per_second"] == pytest.approx((batch.work.tokens + batch.taught.tokens) / 0.5)
    assert 0 < rates["flops_spared"] < 1


def test_peak_of_a_cpu_is_measured_and_of_this_order():
    peak = peak_flops(jnp.float32)
    assert 1e9 < peak < 1e14
    assert peak_flops(jnp.float32) == peak  # measured once
