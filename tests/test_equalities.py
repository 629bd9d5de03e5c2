"""The loss and every gradient do not depend on how examples are cut, packed, split or laid on a mesh (float64)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcjax import model as llama
from rcjax import objective as objectives
from rcjax.curriculum import CURRICULA, Curriculum
from rcjax.model import LlamaConfig
from rcjax.objective import make_objective
from rcjax.packing import assemble, best_fit
from rcjax.sharding import make_mesh, partition_spec
from rcjax.train.step import LossSettings, loss_fn
from rcjax.views import build_views, student_mask
from tests.examples import VOCABULARY, random_examples
from tests.oracles import dense_loss

CONFIG = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    rope_theta=100.0,
    rms_norm_eps=1e-6,
    tie_embeddings=False,
)
ROW = 320  # slots; no example of these tests is longer than half of it
pytestmark = pytest.mark.usefixtures("x64")


def random_params(seed=0):
    params = llama.init_params(CONFIG, jax.random.key(seed), jnp.float64)
    # Large enough that attention and the two views really differ.
    return jax.tree.map(lambda leaf: leaf * (10.0 if leaf.ndim > 2 else 1.0), params)


def masks_of(examples, curriculum, rate, seed=0):
    rng = np.random.default_rng(seed)
    return [student_mask(e, curriculum, rate, rng) if e.kind == "reflection" else None for e in examples]


@functools.lru_cache
def compiled(objective_name, alpha):
    """The product's microbatch step and the dense oracle, compiled once an objective."""
    objective = make_objective(objective_name, alpha)
    settings = LossSettings(CONFIG, objective, compute_dtype=jnp.float64, chunk=16)
    weights = (objective.ce_weight, objective.kd_weight)
    ours = jax.jit(lambda params, microbatch: jax.value_and_grad(loss_fn, has_aux=True)(params, microbatch, settings))
    dense = jax.jit(jax.value_and_grad(lambda params, batch: dense_loss(CONFIG, params, batch, *weights)))
    return objective, ours, dense


def packed_loss(params, examples, masks, setting, row_length=ROW, rows_per_microbatch=2, one_per_row=False):
    """Loss and gradients by the product's own path, microbatch after microbatch."""
    objective, ours, _ = compiled(*setting)
    views = [build_views(e, objective, mask) for e, mask in zip(examples, masks, strict=True)]
    rows = [[i] for i in range(len(views))] if one_per_row else best_fit([view.slots for view in views], row_length)
    arrays = assemble(views, rows, row_length=row_length, rows_per_microbatch=rows_per_microbatch)
    arrays = {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in arrays.items()}
    total, grads = 0.0, jax.tree.map(jnp.zeros_like, params)
    for index in range(len(arrays["tokens"])):
        (loss, _), new = ours(params, {name: array[index] for name, array in arrays.items()})
        total, grads = total + loss, jax.tree.map(jnp.add, grads, new)
    return total, grads


def oracle_loss(params, examples, masks, setting):
    """The same by the dense oracle."""
    objective, _, dense = compiled(*setting)
    shape = (len(examples), ROW // 2)
    batch = {"tokens": np.zeros(shape, int), "student": np.ones(shape, bool)}
    batch |= {name: np.zeros(shape) for name in ("teacher_ce", "student_ce", "kd")}
    for row, (example, mask) in enumerate(zip(examples, masks, strict=True)):
        here = slice(0, len(example))
        batch["tokens"][row, here] = example.tokens
        reflection = example.kind == "reflection"
        teacher_ce = objective.teacher_ce if reflection else objectives.SPOKEN
        batch["teacher_ce"][row, here] = objectives.weights(teacher_ce, example.regions)
        if reflection:
            batch["student"][row, here] = mask
            batch["student_ce"][row, here] = objectives.weights(objective.student_ce, example.regions)
            batch["kd"][row, here] = objectives.weights(objective.distill, example.regions)
            batch["kd"][row, len(example) - 1] = 0  # EOS predicts nothing
    return dense(params, batch)


def assert_same(ours, theirs, rtol=1e-6):
    """Weights are float32 in a batch, so equality holds to about 1e-7 in float64 arithmetic."""
    np.testing.assert_allclose(ours[0], theirs[0], rtol=rtol)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(theirs[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale), ours[1], theirs[1])


@pytest.mark.parametrize("name", sorted(CURRICULA))
@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_compacted_views_equal_the_dense_masked_oracle(name, rate):
    params, setting = random_params(), ("reference", 0.4)
    examples = random_examples(len(name) + int(10 * rate), 4)
    masks = masks_of(examples, Curriculum(name), rate)
    assert_same(packed_loss(params, examples, masks, setting), oracle_loss(params, examples, masks, setting))


@pytest.mark.parametrize("name", sorted(objectives.OBJECTIVES))
def test_every_objective_equals_the_dense_masked_oracle(name):
    params, setting = random_params(1), (name, None)
    examples = random_examples(3, 4)
    masks = masks_of(examples, Curriculum("random_block"), 0.4)
    assert_same(packed_loss(params, examples, masks, setting), oracle_loss(params, examples, masks, setting))


def test_loss_does_not_depend_on_packing_or_microbatches():
    params, setting = random_params(2), ("reference", None)
    examples = random_examples(4, 11)
    masks = masks_of(examples, Curriculum("block"), 0.4)
    one_per_row = packed_loss(params, examples, masks, setting, one_per_row=True)
    for row_length, rows in ((ROW, 1), (ROW, 3), (700, 8)):
        packed = packed_loss(params, examples, masks, setting, row_length=row_length, rows_per_microbatch=rows)
        assert_same(packed, one_per_row, rtol=1e-10)


@pytest.mark.parametrize("shape", [{"data": 8}, {"data": 2, "fsdp": 4}, {"fsdp": 2, "tensor": 2, "data": 2}])
def test_any_mesh_equals_one_device(shape):
    if jax.device_count() != 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    params, setting = random_params(3), ("reference", None)
    examples = random_examples(5, 12)
    masks = masks_of(examples, Curriculum("block"), 0.4)
    alone = packed_loss(params, examples, masks, setting, rows_per_microbatch=8)
    mesh = make_mesh(shape)
    shardings = jax.tree.map(
        lambda axes: jax.sharding.NamedSharding(mesh, partition_spec(axes)),
        llama.logical_axes(CONFIG),
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )
    with jax.set_mesh(mesh):
        spread = packed_loss(jax.device_put(params, shardings), examples, masks, setting, rows_per_microbatch=8)
    assert_same(spread, alone, rtol=1e-10)


def test_token_normalisation_weighs_tokens_alike():
    objective = make_objective("ce")
    examples = random_examples(6, 5)
    views = [build_views(e, objective, None) for e in examples]
    rows = best_fit([view.slots for view in views], 400)
    arrays = assemble(views, rows, row_length=400, rows_per_microbatch=1, normalisation="token")
    weights = arrays["single_ce"][arrays["single_ce"] > 0]
    np.testing.assert_allclose(weights, 1 / len(weights), rtol=1e-6)
