"""Every teacher and every divergence equal the dense oracle, in loss and gradient (float64)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcjax import losses
from rcjax import model as llama
from rcjax import objective as objectives
from rcjax.curriculum import Curriculum
from rcjax.data.loader import BatchSettings, StepSource
from rcjax.objective import make_objective
from rcjax.packing import TEACHER_ARRAYS, assemble, best_fit, widths
from rcjax.train.state import Average
from rcjax.train.step import LossSettings, loss_fn
from rcjax.views import build_views
from tests.examples import random_examples
from tests.oracles import dense_loss
from tests.test_equalities import CONFIG, ROW, assert_same, masks_of, random_params

pytestmark = pytest.mark.usefixtures("x64")
OTHER = dataclasses.replace(CONFIG, num_layers=1, hidden_size=8, num_heads=2, num_kv_heads=1, tie_embeddings=True)


def other_params(seed=9):
    params = llama.init_params(OTHER, jax.random.key(seed), jnp.float64)
    return jax.tree.map(lambda leaf: leaf * (10.0 if leaf.ndim > 1 else 1.0), params)


def sharp_params(seed):
    """Distributions far from even, so that teacher and student differ."""
    params = random_params(seed)
    params["head"]["kernel"] *= 30
    params["embed"]["embedding"] *= 10
    return params


def packed_loss(params, examples, masks, objective, teacher=None, own_teacher=True):
    """Loss and gradients by the product's own path; ``teacher`` is (config, params) of another network."""
    views = [build_views(e, objective, m, own_teacher=own_teacher) for e, m in zip(examples, masks, strict=True)]
    rows = best_fit([view.slots for view in views], ROW)
    shape = dict(row_length=ROW, rows_per_microbatch=2)
    arrays = assemble(views, rows, own_teacher=own_teacher, **shape)
    read = [0] * len(arrays["tokens"]) if own_teacher else widths(taught_slots(views, rows), **shape)
    settings = LossSettings(CONFIG, objective, teacher and teacher[0], compute_dtype=jnp.float64, chunk=16)
    step = compiled(settings)
    total, grads = 0.0, jax.tree.map(jnp.zeros_like, params)
    for index, width in enumerate(read):
        microbatch = {
            name: array[index][:, :width] if name in TEACHER_ARRAYS else array[index]
            for name, array in arrays.items()
            if width or name not in TEACHER_ARRAYS
        }
        microbatch = {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in microbatch.items()}
        (loss, _), new = step(params, microbatch, teacher and teacher[1])
        total, grads = total + loss, jax.tree.map(jnp.add, grads, new)
    return total, grads


def taught_slots(views, rows):
    return [sum(0 if views[item].taught_by is None else len(views[item].taught_by) for item in row) for row in rows]


def compiled(settings):
    return jax.jit(lambda params, mb, taught: jax.value_and_grad(loss_fn, has_aux=True)(params, mb, settings, taught))


def oracle_loss(params, examples, masks, objective, teacher=None):
    shape = (len(examples), ROW // 2)
    batch = {"tokens": np.zeros(shape, int), "student": np.ones(shape, bool)}
    batch |= {name: np.zeros(shape) for name in ("teacher_ce", "student_ce", "kd")}
    for row, (example, mask) in enumerate(zip(examples, masks, strict=True)):
        here = slice(0, len(example))
        batch["tokens"][row, here] = example.tokens
        spoken = objective.teacher_ce if example.kind == "reflection" else objectives.SPOKEN
        batch["teacher_ce"][row, here] = objectives.weights(spoken, example.regions)
        if example.kind == "reflection":
            batch["student"][row, here] = mask
            batch["student_ce"][row, here] = objectives.weights(objective.student_ce, example.regions)
            batch["kd"][row, here] = objectives.weights(objective.distill, example.regions)
            batch["kd"][row, len(example) - 1] = 0
    measure = dict(divergence=objective.divergence, temperature=objective.temperature, beta=objective.beta)

    @jax.jit
    @jax.value_and_grad
    def dense(params):
        return dense_loss(CONFIG, params, batch, objective.ce_weight, objective.kd_weight, teacher=teacher, **measure)

    return dense(params)


@functools.cache
def case(seed=3, rate=0.4):
    examples = random_examples(seed, 5)
    return examples, masks_of(examples, Curriculum("random_block"), rate)


@pytest.mark.parametrize(
    ("kind", "temperature", "beta"), [("forward_kl", 2.5, 0.5), ("reverse_kl", 1.0, 0.5), ("jsd", 2.5, 0.2)]
)
def test_every_divergence_equals_the_dense_oracle(kind, temperature, beta):
    objective = make_objective("reference", 0.7, divergence=kind, temperature=temperature, beta=beta)
    params, (examples, masks) = sharp_params(1), case()
    assert_same(packed_loss(params, examples, masks, objective), oracle_loss(params, examples, masks, objective))


def test_divergences_differ_from_each_other():
    rng = np.random.default_rng(0)
    teacher, student = (jnp.asarray(3 * rng.normal(size=(5, 11))) for _ in range(2))
    values = [
        losses.divergence(teacher, student, kind, temperature, beta)
        for kind in objectives.DIVERGENCES
        for temperature, beta in ((1.0, 0.5), (2.0, 0.2))
    ]
    for index, one in enumerate(values):
        assert np.all(one > 0)
        for other in values[index + 2 - index % 2 :]:
            assert np.abs(one - other).max() > 0.05
    np.testing.assert_allclose(values[4], losses.divergence(student, teacher, "jsd", 1.0, 0.5))  # symmetric at 1/2


def test_there_is_code_for_every_divergence():
    assert tuple(losses.DIVERGENCES) == objectives.DIVERGENCES


TABLE = dict(teacher_ce={"TEXT": 0.5}, student_ce={"ANSWER": 2.0}, distill={"CODE": 1.0, "ANSWER": 0.25})


@pytest.mark.parametrize("options", [dict(name="reference"), dict(name="blockwise"), dict(name="table", **TABLE)])
def test_another_network_with_the_same_weights_teaches_what_oneself_does(options):
    params, (examples, masks) = sharp_params(2), case()
    objective = make_objective(**options)
    alone = packed_loss(params, examples, masks, objective)
    taught = packed_loss(params, examples, masks, objective, teacher=(CONFIG, params), own_teacher=False)
    assert_same(taught, alone, rtol=1e-9)
    assert_same(alone, oracle_loss(params, examples, masks, objective))


@pytest.mark.parametrize("options", [dict(name="reference"), dict(name="blockwise", divergence="jsd", temperature=2.0)])
def test_another_network_equals_the_dense_oracle(options):
    params, teacher, (examples, masks) = sharp_params(4), (OTHER, other_params()), case(seed=8)
    objective = make_objective(alpha=0.6, **options)
    ours = packed_loss(params, examples, masks, objective, teacher=teacher, own_teacher=False)
    assert_same(ours, oracle_loss(params, examples, masks, objective, teacher=teacher))


def test_another_network_reads_no_more_than_it_has_to():
    examples, masks = case()
    objective = make_objective("blockwise")
    for example, mask in zip(examples, masks, strict=True):
        views = build_views(example, objective, mask, own_teacher=False)
        if example.kind == "generation":
            assert views.taught_by is None
            continue
        assert views.teacher is None  # blockwise has no cross-entropy in the teacher's view
        distilled = np.flatnonzero(views.pair_kd)
        last = views.pair_teacher_slots[distilled].max() if len(distilled) else -1
        assert (0 if views.taught_by is None else len(views.taught_by)) == last + 1
        assert views.slots >= len(views.student)


def test_widths_of_teacher_rows_are_few_and_enough():
    examples = random_examples(21, 60)
    seen = set()
    for rate in (0.0, 0.4, 1.0):
        masks = masks_of(examples, Curriculum("block"), rate)
        views = [
            build_views(e, make_objective("blockwise"), mask, own_teacher=False)
            for e, mask in zip(examples, masks, strict=True)
        ]
        rows = best_fit([view.slots for view in views], ROW)
        shape = dict(row_length=ROW, rows_per_microbatch=3)
        arrays = assemble(views, rows, own_teacher=False, **shape)
        read = widths(taught_slots(views, rows), **shape)
        assert len(read) == len(arrays["tokens"])
        for width, segments, slots, weights in zip(
            read, arrays["teacher_segment_ids"], arrays["pair_teacher_slots"], arrays["pair_kd"], strict=True
        ):
            used = np.flatnonzero(segments.any(0))
            assert (used.max() + 1 if len(used) else 0) <= width
            assert slots[weights > 0].max(initial=-1) < max(width, 1)
            assert slots.max() <= max(width - 1, 0)  # no gather out of bounds, weighted or not
        seen |= set(read)
    assert seen <= {0, ROW // 4, ROW // 2, 3 * ROW // 4, ROW}
    assert 0 in seen  # at the end blockwise sees no block any more: nothing to distil, nothing to read


def test_moving_average_is_the_corrected_one_of_its_formula():
    rng = np.random.default_rng(0)
    history = rng.normal(size=(12, 3))
    for decay, every, correction in ((0.9, 1, True), (0.5, 3, True), (0.9, 2, False), (0.0, 1, True)):
        average = Average(decay, every, correction)
        ema = {"w": jnp.asarray(history[0])}
        plain = np.zeros(3) if correction else history[0]
        count = 0
        for step in range(1, 12):
            ema = average.update(ema, {"w": jnp.asarray(history[step])}, jnp.asarray(step))
            if step % every == 0:
                count += 1
                plain = decay * plain + (1 - decay) * history[step]
            if count:
                expected = plain / (1 - decay**count) if correction else plain
                np.testing.assert_allclose(ema["w"], expected, rtol=1e-12)
            else:
                np.testing.assert_array_equal(ema["w"], history[0])  # until then the parameters of step 0 teach


def test_a_whole_curriculum_needs_a_few_programs():
    examples = random_examples(13, 80)
    params, teacher = random_params(5), other_params()
    for own, most in ((True, 4), (False, 5)):  # four widths of the rows, or none to four of teacher rows
        objective = make_objective("blockwise")
        settings = BatchSettings(objective, Curriculum("block"), 8, 20, ROW, 1, "example", 0, own)
        source = StepSource([examples], [1], settings)
        loss_settings = LossSettings(CONFIG, objective, None if own else OTHER, compute_dtype=jnp.float64, chunk=16)
        step = jax.jit(lambda p, mb, taught, s=loss_settings: loss_fn(p, mb, s, taught)[0])
        counts = []
        for index in range(8):
            batch = source[index]
            counts.append(batch.microbatches)
            for number in range(batch.microbatches):
                assert np.isfinite(step(params, batch.microbatch(number), None if own else teacher))
        assert len(set(counts)) > 1  # the work of a step varies, its programs do not
        assert step._cache_size() <= most


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(name="refrence"), "objective.name is 'refrence'"),
        (dict(name="table"), "give at least one of them"),
        (dict(name="reference", alpha=0.5, kd_weight=1.0), "give either"),
        (dict(name="reference", kd_weight=-1.0), "kd_weight is -1.0"),
        (dict(name="reference", divergence="kl"), "divergence is 'kl'"),
        (dict(name="reference", temperature=0.0), "temperature is 0.0"),
        (dict(name="reference", beta=1.0), "beta is 1.0"),
        (dict(name="table", distill={"COD": 1.0}), "unknown region 'COD'"),
        (dict(name="table", distill={"CODE": "much"}), "distill.CODE is 'much'"),
    ],
)
def test_nonsense_is_refused_by_field(options, message):
    with pytest.raises(ValueError, match=message):
        make_objective(**options)
