"""Our Llama is transformers' Llama: logits and gradients, also in packed rows with gaps in the positions."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcjax import model as llama
from rcjax.hf import convert
from tests.model.peers import CONFIGS, make_config, random_params, torch, transformers_model

TOLERANCE = {"float64": 1e-9, "float32": 1e-4}


def logits_fn(config, dtype, **options):
    def logits(params, tokens, positions, segment_ids):
        hidden = llama.apply(config, params, tokens, positions, segment_ids, dtype=dtype, **options)
        return hidden @ llama.head_kernel(config, params).astype(hidden.dtype)

    return logits


def worst(ours, theirs) -> float:
    """Largest difference, relative to the largest entry."""
    theirs = np.asarray(theirs)
    return float(np.max(np.abs(np.asarray(ours) - theirs)) / np.max(np.abs(theirs)))


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float64") for name in CONFIGS), ("grouped", "float32"), ("plain", "float32")]
)
def test_logits_and_every_gradient_equal_transformers(name, dtype):
    config = make_config(**CONFIGS[name])
    params = random_params(config, seed=1, dtype=dtype)
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, config.vocab_size, (2, 150))  # more than one block of queries
    cotangent = rng.normal(size=(2, 150, config.vocab_size)).astype(dtype)

    peer = transformers_model(config, params, getattr(torch, dtype))
    expected = peer(torch.tensor(tokens)).logits
    (expected * torch.tensor(cotangent)).sum().backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in peer.named_parameters()}

    with jax.enable_x64(dtype == "float64"):
        positions = np.broadcast_to(np.arange(150, dtype=np.int32), tokens.shape)
        logits = logits_fn(config, dtype)

        def loss(params):
            out = logits(params, tokens.astype(np.int32), positions, np.ones_like(positions))
            return jnp.sum(out * cotangent), out

        grads, out = jax.jit(jax.grad(loss, has_aux=True))(params)
        assert out.dtype == dtype
        assert worst(out, expected.detach()) < TOLERANCE[dtype]
        named = dict(convert.to_hf(config, grads))
    assert named.keys() == gradients.keys()
    for key, gradient in named.items():
        assert worst(gradient, gradients[key]) < TOLERANCE[dtype], key


@pytest.mark.parametrize("name", ["grouped", "linear rope, large theta"])
def test_segments_with_gaps_in_positions_equal_separate_calls(name):
    config = make_config(**CONFIGS[name])
    params = random_params(config, seed=3)
    rng = np.random.default_rng(4)
    length = 300
    tokens = rng.integers(0, config.vocab_size, (2, length)).astype(np.int32)
    positions, segments = np.zeros_like(tokens), np.zeros_like(tokens)
    for row, cuts in enumerate([[0, 40, 41, 200, 270], [0, 130, 290]]):  # what is left at the end is padding
        for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
            segments[row, start:stop] = number + 1
            positions[row, start:stop] = np.sort(rng.choice(900, stop - start, replace=False))
    peer = transformers_model(config, params, torch.float64)
    with jax.enable_x64(True):
        ours = np.asarray(jax.jit(logits_fn(config, "float64"))(params, tokens, positions, segments))
    assert np.all(np.isfinite(ours))
    for row in range(2):
        for number in range(1, segments[row].max() + 1):
            slots = segments[row] == number
            with torch.no_grad():
                ids, places = (torch.tensor(array[row, slots][None]).long() for array in (tokens, positions))
                # transformers reads a jump in positions as a new packed sequence unless a mask is given.
                seen = torch.ones(slots.sum(), slots.sum(), dtype=torch.bool).tril()[None, None]
                expected = peer(ids, position_ids=places, attention_mask=seen).logits[0].numpy()
            assert worst(ours[row, slots], expected) < 1e-9


def test_scan_and_remat_change_nothing():
    config = make_config()
    tokens = np.random.default_rng(5).integers(0, config.vocab_size, (2, 20)).astype(np.int32)
    positions = np.broadcast_to(np.arange(20, dtype=np.int32), tokens.shape)

    def gradient(**options):
        def loss(params):
            logits = logits_fn(config, "float64", attention="blocks", **options)
            return jnp.sum(jnp.sin(logits(params, tokens, positions, np.ones_like(tokens))))

        return jax.jit(jax.grad(loss))(random_params(config, seed=6))

    with jax.enable_x64(True):
        plain = gradient(scan_layers=False)
        for options in (
            dict(scan_layers=True, remat="full"),
            dict(scan_layers=True, remat="dots"),
            dict(scan_layers=False, remat="dots"),
        ):
            other = gradient(**options)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), plain, other)


def test_bfloat16_computes_in_bfloat16_and_stays_near_float32():
    config = make_config()
    params = random_params(config, seed=7, dtype=np.float32)
    tokens = np.random.default_rng(8).integers(0, config.vocab_size, (1, 64)).astype(np.int32)
    positions = np.arange(64, dtype=np.int32)[None]
    run = [
        jax.jit(
            lambda params, dtype=dtype: llama.apply(config, params, tokens, positions, tokens * 0 + 1, dtype=dtype)
        )(params)
        for dtype in (jnp.bfloat16, jnp.float32)
    ]
    assert run[0].dtype == jnp.bfloat16
    assert np.abs(np.asarray(run[0], np.float32) - np.asarray(run[1])).mean() < 0.05 * np.abs(run[1]).mean()
