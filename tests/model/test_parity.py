"""Every family is transformers' model of that name: logits and gradients, also in packed rows with gaps."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcjax import model as llama
from rcjax.hf import convert
from rcjax.model import attention, tiles
from tests.model.peers import CONFIGS, make_config, masks, random_params, torch, transformers_model

TOLERANCE = {"float64": 1e-9, "float32": 1e-4}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Short rows then have several blocks, the last of which is not full."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 32)
    monkeypatch.setattr(tiles, "TILE", 16)


def logits_fn(config, dtype, **options):
    def logits(params, tokens, positions, segment_ids):
        hidden = llama.apply(config, params, tokens, positions, segment_ids, dtype=dtype, **options)
        kernel = llama.head_kernel(config, params)[:, : config.vocab_size]  # behind them are columns of no token
        return hidden @ kernel.astype(hidden.dtype)

    return logits


def worst(ours, theirs) -> float:
    """Largest difference, relative to the largest entry."""
    theirs = np.asarray(theirs)
    assert np.shape(ours) == theirs.shape
    return float(np.max(np.abs(np.asarray(ours) - theirs)) / np.max(np.abs(theirs)))


def compare(config, dtype, ours, gradients, peer, logits):
    """Logits, and gradients of every parameter by the names of transformers."""
    assert ours.dtype == dtype
    assert worst(ours, logits) < TOLERANCE[dtype]
    named = dict(convert.to_hf(config, gradients))
    expected = {name: parameter.grad.numpy() for name, parameter in peer.named_parameters()}
    assert named.keys() == expected.keys()
    for key, gradient in named.items():
        assert worst(gradient, expected[key]) < TOLERANCE[dtype], key


# Layers in a row, blocks.
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_every_gradient_equal_transformers(name, dtype):
    config = make_config(**CONFIGS[name])
    params = random_params(config, seed=1, dtype=dtype)
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, config.vocab_size, (2, 50))
    cotangent = rng.normal(size=(2, 50, config.vocab_size)).astype(dtype)
    peer = transformers_model(config, params, getattr(torch, dtype))
    expected = peer(torch.tensor(tokens)).logits  # the peer makes masks and windows itself
    (expected * torch.tensor(cotangent)).sum().backward()
    with jax.enable_x64(dtype == "float64"):
        positions = np.broadcast_to(np.arange(50, dtype=np.int32), tokens.shape)
        logits = logits_fn(config, dtype, scan_layers=False, attention="blocks")

        def loss(params):
            out = logits(params, tokens.astype(np.int32), positions, np.ones_like(positions))
            return jnp.sum(out * cotangent), out

        gradients, out = jax.jit(jax.grad(loss, has_aux=True))(params)
        compare(config, dtype, out, gradients, peer, expected.detach())


# Layers scanned, tiles.
@pytest.mark.parametrize(
    "name", ["llama 3.1", "smollm2", "mistral", "qwen2, windows in some layers", "qwen3, biases, windows"]
)
def test_packed_segments_with_gaps_in_positions_equal_separate_calls(name):
    config = make_config(**CONFIGS[name])
    params = random_params(config, seed=3)
    rng = np.random.default_rng(4)
    length = 110
    tokens = rng.integers(0, config.vocab_size, (2, length)).astype(np.int32)
    positions, segments = np.zeros_like(tokens), np.zeros_like(tokens)
    for row, cuts in enumerate([[0, 14, 15, 70, 100], [0, 45, 107]]):  # what is left at the end is padding
        for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
            segments[row, start:stop] = number + 1
            # Few gaps, so that windows reach over some of them, or many.
            room = (stop - start) * (3 if number % 2 else 1) + 7
            positions[row, start:stop] = 300 * number + np.sort(rng.choice(room, stop - start, replace=False))
    cotangent = rng.normal(size=(2, length, config.vocab_size)) * (segments > 0)[..., None]
    peer = transformers_model(config, params, torch.float64)
    expected = np.zeros_like(cotangent)
    for row in range(2):
        for number in range(1, segments[row].max() + 1):
            slots = segments[row] == number
            ids, places = (torch.tensor(array[row, slots][None]).long() for array in (tokens, positions))
            # transformers reads a jump in positions as a new packed sequence unless a mask is given.
            out = peer(ids, position_ids=places, attention_mask=masks(config, positions[row, slots])).logits
            (out * torch.tensor(cotangent[row, slots][None])).sum().backward()
            expected[row, slots] = out[0].detach()
    with jax.enable_x64(True):
        logits = logits_fn(config, "float64", scan_layers=True, attention="tiles")

        def loss(params):
            out = logits(params, tokens, positions, segments)
            return jnp.sum(out * cotangent), out

        gradients, out = jax.jit(jax.grad(loss, has_aux=True))(params)
        assert np.all(np.isfinite(out))
        compare(config, "float64", out * (segments > 0)[..., None], gradients, peer, expected)


def test_windows_count_positions_so_a_compacted_view_equals_the_masked_sequence():
    config = make_config(**CONFIGS["qwen2, windows in some layers"])
    params = random_params(config, seed=5)
    rng = np.random.default_rng(6)
    tokens = rng.integers(0, config.vocab_size, (1, 50)).astype(np.int32)
    positions = np.arange(50, dtype=np.int32)[None]
    kept = np.sort(rng.choice(50, 35, replace=False))
    with jax.enable_x64(True):
        logits = jax.jit(logits_fn(config, "float64", scan_layers=False, attention="blocks"))
        masked = logits(params, tokens, positions, np.isin(positions, kept).astype(np.int32))
        compacted = logits(params, tokens[:, kept], positions[:, kept], np.ones((1, 35), np.int32))
        renumbered = logits(params, tokens[:, kept], positions[:, :35], np.ones((1, 35), np.int32))
    assert worst(compacted, masked[:, kept]) < 1e-12
    assert worst(renumbered, masked[:, kept]) > 0.1


def test_layer_by_layer_equals_the_whole():
    config = make_config(**CONFIGS["qwen2, windows in some layers"], vocab_multiple=8)
    params = random_params(config, seed=7)
    tokens = np.random.default_rng(8).integers(0, config.vocab_size, (2, 50)).astype(np.int32)
    positions = np.broadcast_to(np.arange(50, dtype=np.int32), tokens.shape)
    segments = np.ones_like(tokens)
    with jax.enable_x64(True):
        run = jax.jit(llama.apply_layer, static_argnums=(0, 2), static_argnames=("dtype", "attention"))
        x = llama.embed_tokens(config, params["embed"]["embedding"], tokens, "float64")
        for index, window in enumerate(config.windows):
            layer = jax.tree.map(lambda leaf, index=index: leaf[index], params["layers"])
            x = run(config, layer, window, x, positions, segments, dtype="float64", attention="blocks")
        ours = llama.final_logits(config, params["norm"]["scale"], llama.head_kernel(config, params), x)
        whole = jax.jit(logits_fn(config, "float64", attention="blocks"))(params, tokens, positions, segments)
    assert ours.shape == (2, 50, config.vocab_size)
    assert ours.dtype == jnp.float64
    np.testing.assert_allclose(ours, whole, rtol=1e-12, atol=1e-12)


def test_scan_and_remat_change_nothing():
    config = make_config(**CONFIGS["qwen2, windows in some layers"])  # in a scan its windows are data
    tokens = np.random.default_rng(5).integers(0, config.vocab_size, (2, 30)).astype(np.int32)
    positions = np.broadcast_to(np.arange(30, dtype=np.int32), tokens.shape)

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
    config = make_config(**CONFIGS["qwen3"])
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
