"""Both attention paths are dense masked attention, in value and gradient, on one device and on a mesh."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from rcjax import model as llama
from rcjax.model import attention, tiles
from rcjax.model.attention import PATHS
from rcjax.sharding import make_mesh, partition_spec
from tests.model.peers import make_config


def dense(query, key, value, segment_ids, positions=None, window=None):
    """The whole [S, S] score matrix, keys and values repeated for every head."""
    group = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(x, group, axis=2) for x in (key, value))
    scores = jnp.einsum("bqnh,btnh->bnqt", query, key) / np.sqrt(query.shape[-1])
    mask = (segment_ids[:, :, None] == segment_ids[:, None]) & np.tri(query.shape[1], dtype=bool)
    if window is not None:
        mask &= positions[:, :, None] - positions[:, None] < window
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bnqt,btnh->bqnh", weights, value)


def packed(rng, batch, length, longest):
    """Segment ids of rows: segments of random lengths, padding behind."""
    segments = np.zeros((batch, length), np.int32)
    for row in range(batch):
        start, number = 0, 0
        while start < length and rng.random() > 0.1:
            stop = start + int(rng.integers(1, longest + 1))
            number += 1
            segments[row, start:stop] = number
            start = stop
    return segments


def rising(rng, segments, step):
    """Positions that rise by 1 to ``step`` inside each segment; 0 for padding."""
    jumps = rng.integers(1, step + 1, segments.shape)
    positions = np.zeros_like(segments)
    for number in range(1, segments.max() + 1):
        inside = segments == number
        positions += np.where(inside, np.cumsum(jumps * inside, axis=1) - 1, 0).astype(np.int32)
    return positions


def value_and_gradients(attend, arrays, segments, weights, *reach):
    """Padding is left out of the sum, as the loss leaves it out. ``reach``: positions and window, or nothing."""
    real = (segments > 0)[..., None, None]

    def total(query, key, value):
        out = attend(query, key, value, segments, *reach)
        return jnp.sum(jnp.where(real, out, 0) * weights), jnp.where(real, out, 0)

    gradients, out = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(*arrays)
    return (out, *gradients)


def draw(rng, batch, length, heads, kv_heads, head_dim=4):
    shapes = [(batch, length, n, head_dim) for n in (heads, kv_heads, kv_heads, heads)]
    *arrays, weights = (rng.normal(size=shape) for shape in shapes)
    return arrays, weights


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Short rows then have many blocks; the parity tests run blocks of the usual size."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 16)
    monkeypatch.setattr(tiles, "TILE", 16)


@pytest.mark.parametrize(
    ("path", "heads", "batch"),
    [("blocks", (4, 2), 4), ("blocks", (3, 1), 1), ("tiles", (4, 2), 4), ("tiles", (3, 1), 3), ("tiles", (2, 2), 1)],
)
def test_paths_equal_dense_attention(path, heads, batch):
    with jax.enable_x64(True):
        expected, ours = (jax.jit(functools.partial(value_and_gradients, f)) for f in (dense, PATHS[path]))

        # A few hundred layouts of segments, over one compiled program each.
        @settings(max_examples=40, deadline=None)
        @given(seed=st.integers(0, 2**20), longest=st.sampled_from([1, 7, 30, 90]), shuffled=st.booleans())
        def check(seed, longest, shuffled):
            rng = np.random.default_rng(seed)
            arrays, weights = draw(rng, batch, 50, *heads)
            segments = packed(rng, batch, 50, longest)
            if shuffled:  # interleaved segments need more tiles; the result must be right all the same
                segments = rng.permuted(segments, axis=1)
            results = (f(arrays, segments, weights) for f in (ours, expected))
            for mine, theirs in zip(*results, strict=True):
                assert mine.dtype == jnp.float64
                np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-11)

        check()


@pytest.mark.parametrize(("path", "window"), [("blocks", 1), ("blocks", 20), ("blocks", "traced"), ("tiles", "traced")])
def test_windows_of_positions_equal_dense_attention(path, window):
    static = () if window == "traced" else (window,)
    with jax.enable_x64(True):
        # A window that is a Python number leaves keys out of the program, one that is traced can not.
        expected, ours = (
            jax.jit(lambda *given, f=f: value_and_gradients(f, *given, *static)) for f in (dense, PATHS[path])
        )

        @settings(max_examples=25, deadline=None)
        @given(
            seed=st.integers(0, 2**20),
            longest=st.sampled_from([7, 30, 90]),
            step=st.sampled_from([1, 2, 9]),
            wide=st.integers(1, 60),
        )
        def check(seed, longest, step, wide):
            rng = np.random.default_rng(seed)
            arrays, weights = draw(rng, 3, 50, 4, 2)
            segments = packed(rng, 3, 50, longest)
            reach = (rising(rng, segments, step), *(() if static else (np.int32(wide),)))
            results = (f(arrays, segments, weights, *reach) for f in (ours, expected))
            for mine, theirs in zip(*results, strict=True):
                assert mine.dtype == jnp.float64
                np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-11)

        check()


def test_only_tiles_that_segments_need_are_made():
    segments = np.zeros((2, 4, 128), np.int32)
    segments[0] = np.repeat(np.arange(1, 9), 64).reshape(4, 128)  # no segment crosses a tile
    segments[1].flat[:200] = 1  # the rest of this row is padding
    (rows, queries, keys), count = tiles._needed_tiles(jnp.asarray(segments))
    made = list(zip(*(np.asarray(x)[: int(count)].tolist() for x in (rows, queries, keys)), strict=True))
    assert made == [(0, 0, 0), (0, 1, 1), (0, 2, 2), (0, 3, 3), (1, 0, 0), (1, 1, 0), (1, 1, 1)]


def test_tiles_outside_of_the_window_are_not_made():
    segments = jnp.ones((1, 4, 16), np.int32)
    positions = np.arange(64, dtype=np.int32).reshape(1, 4, 16)

    def made(positions, window):
        (_, queries, keys), count = tiles._needed_tiles(segments, (jnp.asarray(positions), jnp.int32(window)))
        return list(zip(*(np.asarray(x)[: int(count)].tolist() for x in (queries, keys)), strict=True))

    diagonal = [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert made(positions, 1) == diagonal
    assert made(positions, 2) == sorted([*diagonal, (1, 0), (2, 1), (3, 2)])  # the first query sees the last key
    assert made(positions, 17) == sorted([*diagonal, (1, 0), (2, 1), (3, 2)])
    assert made(positions, 18) == sorted([*diagonal, (1, 0), (2, 1), (3, 2), (2, 0), (3, 1)])
    assert len(made(positions, 64)) == 10
    assert made(3 * positions, 3) == diagonal  # gaps: slots are near, positions are not


@pytest.mark.parametrize(("path", "window"), [("tiles", None), ("tiles", 9), ("blocks", 9)])
def test_a_mesh_changes_no_window(path, window):
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    rng = np.random.default_rng(3)
    arrays, weights = draw(rng, 4, 40, 4, 2)
    segments = packed(rng, 4, 40, 30)
    positions = rising(rng, segments, 3)
    traced = () if window else (np.int32(11),)
    f = jax.jit(lambda *given: value_and_gradients(PATHS[path], *given, *((window,) if window else ())))
    with jax.enable_x64(True):
        alone = f(arrays, segments, weights, positions, *traced)
        mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
        with jax.set_mesh(mesh):

            def lay(array, *axes):
                return jax.device_put(array, NamedSharding(mesh, partition_spec(axes)))

            heads = [
                lay(x, "batch", None, name, None)
                for x, name in zip(arrays, ("heads", "kv_heads", "kv_heads"), strict=True)
            ]
            segments, positions = (lay(x, "batch", None) for x in (segments, positions))
            spread = f(heads, segments, lay(weights, "batch", None, "heads", None), positions, *traced)
        for mine, theirs in zip(spread, alone, strict=True):
            assert len(mine.sharding.device_set) == 8
            np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("path", "family"),
    [
        ("tiles", {}),
        ("blocks", dict(family="qwen3", qk_norm=True, num_layers=2, sliding_window=9, full_attention_layers=1)),
    ],
    ids=["tiles", "blocks, norms and windows"],
)
def test_a_mesh_changes_neither_loss_nor_gradient(path, family):
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    config = make_config(**{**dict(vocab_size=64, intermediate_size=64, num_layers=1), **family})
    init = functools.partial(llama.init_params, config)
    params = jax.jit(init)(jax.random.key(0))
    rng = np.random.default_rng(1)
    segments = packed(rng, 8, 40, 30)
    tokens = rng.integers(0, 64, segments.shape).astype(np.int32)
    positions = np.broadcast_to(np.arange(40, dtype=np.int32), tokens.shape)

    def loss(params, tokens, positions, segments):
        hidden = llama.apply(
            config, params, tokens, positions, segments, scan_layers=True, remat="full", attention=path
        )
        logits = hidden @ llama.head_kernel(config, params)
        return jnp.sum(jnp.where(segments > 0, jax.nn.logsumexp(logits, axis=-1), 0))

    expected = jax.jit(jax.value_and_grad(loss))(params, tokens, positions, segments)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with jax.set_mesh(mesh):
        place = jax.tree.map(
            lambda axes: NamedSharding(mesh, partition_spec(axes)),
            llama.logical_axes(config),
            is_leaf=lambda node: isinstance(node, tuple),
        )
        rows = NamedSharding(mesh, partition_spec(("batch", None)))
        # Born in place: every device must hold the values that one device would.
        sharded = jax.jit(init, out_shardings=place)(jax.random.key(0))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), sharded, params)
        batch = jax.device_put((tokens, positions, segments), rows)
        ours = jax.jit(jax.value_and_grad(loss), out_shardings=(None, place))(sharded, *batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), ours, expected)
