"""Each part of the model is the part of transformers that has its place, in value and gradient (float64)."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rcjax import model as llama
from rcjax.model import attention, tiles
from rcjax.model.attention import Attention
from rcjax.model.layers import MLP, RMSNorm
from rcjax.model.rope import rotate, rotation
from tests.model.peers import CONFIGS, make_config, no_float32, random_params, torch, transformers_model, visible

FAMILIES = ["llama 2", "biases, tied, coarse eps", "mistral", "qwen2, windows in some layers", "qwen3, biases, windows"]
LENGTH = 50

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 32)
    monkeypatch.setattr(tiles, "TILE", 16)


def case(name):
    """Config, parameters of the last layer, and the peer."""
    config = make_config(**CONFIGS[name])
    params = random_params(config, seed=1)
    return (
        config,
        jax.tree.map(lambda leaf: leaf[-1], params["layers"]),
        transformers_model(config, params, torch.float64),
    )


def with_params(module, params):
    """The module with these parameters: [..., "scale" | "kernel" | "bias"]."""
    graph, state = nnx.split(module)
    nnx.replace_by_pure_dict(state, jax.tree.map(jnp.asarray, params))
    return nnx.merge(graph, state)


def inputs(config, seed=2):
    """x [2, S, D], a cotangent of its shape, rising positions with gaps [2, S]."""
    rng = np.random.default_rng(seed)
    x, cotangent = rng.normal(size=(2, 2, LENGTH, config.hidden_size))
    positions = np.stack([np.arange(LENGTH), np.sort(rng.choice(90, LENGTH, replace=False))]).astype(np.int32)
    return x, cotangent, positions


def check(ours, theirs, x, cotangent):
    """Output, and gradient with respect to the input, of two functions of x."""

    @jax.jit
    def both(x):
        out, pull = jax.vjp(ours, x)
        return out, pull(jnp.asarray(cotangent))[0]

    out, gradient = both(x)
    given = torch.tensor(x, requires_grad=True)
    expected = theirs(given)
    (wanted,) = torch.autograd.grad(expected, given, torch.tensor(cotangent))
    assert out.dtype == jnp.float64
    np.testing.assert_allclose(out, expected.detach(), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-9, atol=1e-11)


def common(config):
    return dict(rngs=nnx.Rngs(0), dtype=jnp.dtype("float64"), param_dtype=jnp.float64)


@pytest.mark.parametrize("name", ["llama 2", "biases, tied, coarse eps"])
def test_norm(name):
    config, layer, peer = case(name)
    x, cotangent, _ = inputs(config)
    norm = with_params(RMSNorm(config.hidden_size, config.rms_norm_eps, param_dtype=jnp.float64), layer["mlp_norm"])
    with no_float32(peer):
        # Small values, where eps counts.
        check(norm, peer.model.layers[-1].post_attention_layernorm, 0.02 * x, cotangent)


@pytest.mark.parametrize("name", [name for name in CONFIGS if "windows" not in name])
def test_rope(name):
    config, _, peer = case(name)
    rng = np.random.default_rng(3)
    positions = np.sort(rng.choice(config.max_position_embeddings, (2, LENGTH))).astype(np.int32)
    positions[:, -1] = config.max_position_embeddings - 1
    x = rng.normal(size=(2, LENGTH, config.num_heads, config.head_dim))
    ours = jax.jit(lambda x: rotate(x, tuple(part[:, :, None] for part in rotation(config, positions, x.dtype))))(x)
    with no_float32(peer):
        given = torch.tensor(x).transpose(1, 2)
        table = peer.model.rotary_emb(given, torch.tensor(positions).long())
        expected, _ = sys.modules[type(peer).__module__].apply_rotary_pos_emb(given, given, *table)
    # An angle of a thousand radians keeps 13 of its digits.
    np.testing.assert_allclose(ours, expected.transpose(1, 2), rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", FAMILIES)
def test_attention(name):
    config, layer, peer = case(name)
    x, cotangent, positions = inputs(config)
    window = config.windows[-1]
    ours = with_params(Attention(config, path="blocks", **common(config)), layer["attention"])
    table = rotation(config, positions, jnp.float64)
    theirs = peer.model.layers[-1].self_attn
    with no_float32(peer):
        cosine_sine = peer.model.rotary_emb(torch.tensor(x), torch.tensor(positions).long())
        mask = torch.cat([visible(row, window) for row in positions])
        check(
            lambda x: ours(x, table, positions, np.ones_like(positions), window),
            lambda x: theirs(x, position_embeddings=cosine_sine, attention_mask=mask)[0],
            x,
            cotangent,
        )


def test_mlp():
    config, layer, peer = case("llama 2")
    x, cotangent, _ = inputs(config)
    check(with_params(MLP(config, **common(config)), layer["mlp"]), peer.model.layers[-1].mlp, x, cotangent)


@pytest.mark.parametrize("name", FAMILIES)
def test_layer(name):
    config, layer, peer = case(name)
    x, cotangent, positions = inputs(config)
    window, segments = config.windows[-1], np.ones_like(positions)
    with no_float32(peer):
        cosine_sine = peer.model.rotary_emb(torch.tensor(x), torch.tensor(positions).long())
        mask = torch.cat([visible(row, window) for row in positions])
        check(
            lambda x: llama.apply_layer(
                config, layer, window, x, positions, segments, dtype="float64", attention="tiles"
            ),
            lambda x: peer.model.layers[-1](x, position_embeddings=cosine_sine, attention_mask=mask),
            x,
            cotangent,
        )
