"""The chunked loss equals the dense one, in value and in every gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcjax.losses import DIVERGENCES, vocabulary_loss
from rcjax.sharding import make_mesh, named, partition_spec
from tests.oracles import dense_vocabulary_loss


def random_case(seed, batch=4, slots=20, width=8, vocabulary=33, singles=20, pairs=10):
    rng = np.random.default_rng(seed)
    labels = {}
    for name, length in (("single", singles), ("pair", pairs)):
        used = rng.integers(0, length + 1, batch)
        kept = np.arange(length) < used[:, None]
        labels[f"{name}_targets"] = np.where(kept, rng.integers(0, vocabulary, (batch, length)), 0)
        names = ("single_ce",) if name == "single" else ("pair_teacher_ce", "pair_student_ce", "pair_kd")
        for field in names:
            labels[field] = np.where(kept, rng.random((batch, length)) * (rng.random((batch, length)) < 0.8), 0)
        for field in ("single_slots",) if name == "single" else ("pair_teacher_slots", "pair_student_slots"):
            labels[field] = np.where(kept, rng.integers(0, slots, (batch, length)), 0)
    return rng.normal(size=(batch, slots, width)), rng.normal(size=(width, vocabulary)), labels


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("chunk", [1, 4, 7, 64])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_chunked_loss_and_gradients_equal_dense(chunk, temperature):
    for seed in range(4):
        hidden, head, labels = random_case(seed)

        def ours(hidden, head, labels=labels):
            loss, parts = vocabulary_loss(
                hidden, head, labels, ce_weight=0.3, kd_weight=0.7, temperature=temperature, chunk=chunk
            )
            return 2.0 * loss, (parts["ce"], parts["kl"])

        def dense(hidden, head, labels=labels):
            loss, parts = dense_vocabulary_loss(hidden, head, labels, 0.3, 0.7, temperature)
            return 2.0 * loss, parts

        arguments = (jnp.asarray(hidden), jnp.asarray(head))
        (value, parts), grads = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(*arguments)
        (expected, expected_parts), expected_grads = jax.value_and_grad(dense, (0, 1), has_aux=True)(*arguments)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        np.testing.assert_allclose(parts, expected_parts, rtol=1e-12, atol=1e-14)
        for grad, reference in zip(grads, expected_grads, strict=True):
            np.testing.assert_allclose(grad, reference, rtol=1e-10, atol=1e-13)
        # Without a gradient the plain forward runs: same value.
        np.testing.assert_allclose(ours(*arguments)[0], expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_teacher_gets_no_gradient_from_the_divergence():
    hidden, head, labels = random_case(5)
    labels = {name: np.zeros_like(v) if name.endswith("_ce") else v for name, v in labels.items()}
    # Teacher and student slots apart: the first half of the row is the teacher's.
    labels["pair_teacher_slots"] %= 10
    labels["pair_student_slots"] = labels["pair_student_slots"] % 10 + 10
    grad = jax.grad(lambda h: vocabulary_loss(h, jnp.asarray(head), labels, ce_weight=1, kd_weight=1)[0])(
        jnp.asarray(hidden)
    )
    assert np.abs(grad[:, :10]).max() == 0
    assert np.abs(grad[:, 10:]).max() > 0


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_padding_of_the_table_changes_nothing(divergence):
    hidden, head, labels = random_case(6)  # 33 tokens
    rng = np.random.default_rng(7)
    padded = np.concatenate([head, 100 * rng.normal(size=(8, 7))], axis=1)  # would win every softmax

    def run(head, mesh=None):
        def loss(hidden, head):
            options = dict(ce_weight=0.3, kd_weight=0.7, divergence=divergence, temperature=2.5, chunk=4)
            return vocabulary_loss(hidden, head, labels, vocab_size=33, **options)

        head = jnp.asarray(head)
        if mesh is not None:
            head = jax.device_put(head, named(mesh, partition_spec(("embed", "vocab"))))

        @jax.jit
        def everything(hidden, head):  # the plain forward, and the one that keeps gradients
            return loss(hidden, head)[0], *jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, head)

        forward, (value, parts), (d_hidden, d_head) = everything(jnp.asarray(hidden), head)
        return (forward, value, *parts.values(), d_hidden, d_head[:, :33]), d_head[:, 33:]

    plain, _ = run(head)
    results = [run(padded)]
    if len(jax.devices()) >= 8:
        mesh = make_mesh({"fsdp": 2, "tensor": 4})
        with jax.set_mesh(mesh):
            results.append(run(padded, mesh))
    for ours, d_padding in results:
        for mine, expected in zip(ours, plain, strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-12, atol=1e-15)
        assert d_padding.shape == (8, 7)
        assert not np.any(d_padding)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000))
def test_float32_is_close_to_float64(seed):
    hidden, head, labels = random_case(seed)
    loss, _ = vocabulary_loss(
        jnp.asarray(hidden, jnp.float32), jnp.asarray(head, jnp.float32), labels, ce_weight=1, kd_weight=1
    )
    log_probs = hidden @ head - np.log(np.exp(hidden @ head).sum(-1, keepdims=True))
    rows = np.arange(len(hidden))[:, None]
    teacher, student = (log_probs[rows, labels[f"pair_{side}_slots"]] for side in ("teacher", "student"))
    expected = ((np.exp(teacher) * (teacher - student)).sum(-1) * labels["pair_kd"]).sum()
    for prefix, weight in (
        ("single", "single_ce"),
        ("pair_teacher", "pair_teacher_ce"),
        ("pair_student", "pair_student_ce"),
    ):
        targets = labels["single_targets" if prefix == "single" else "pair_targets"]
        expected -= (log_probs[rows, labels[f"{prefix}_slots"], targets] * labels[weight]).sum()
    np.testing.assert_allclose(loss, expected, rtol=2e-5, atol=1e-5)
