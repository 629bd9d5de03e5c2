"""The TPU's kernel is dense masked attention, in value and gradient: run step by step here, and lowered for a TPU."""

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
from rcjax.model import attention, splash
from rcjax.model.attention import PATHS, attend_blocks, attend_splash, default_path
from rcjax.sharding import make_mesh, partition_spec
from tests.model.peers import make_config
from tests.model.test_attention import dense, draw, packed, rising, value_and_gradients

stepwise = functools.partial(attend_splash, interpret=True)
needs_8_devices = pytest.mark.skipif(
    len(jax.devices()) < 8, reason="needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8"
)


def float32(*arrays):
    return [np.asarray(array, np.float32) for array in arrays]


def assert_close(ours, expected, tolerance=2e-5, scale=0.0):
    """Relative to the largest entry of each array, at least ``scale``; and no entry that is not a number."""
    for mine, theirs in zip(ours, expected, strict=True):
        mine, theirs = float32(mine, theirs)
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance * max(scale, np.abs(theirs).max()))


@pytest.mark.parametrize(
    ("length", "heads", "head_dim", "tile"),
    [
        (128, (2, 2), 64, 512),
        (256, (4, 2), 16, 128),  # several tiles a row
        (384, (4, 1), 128, 128),
        (384, (6, 3), 8, 512),
        (200, (3, 1), 12, 128),  # padded to 256 and cut again
    ],
)
def test_kernel_equals_dense_attention(monkeypatch, length, heads, head_dim, tile):
    monkeypatch.setattr(splash, "LARGEST_TILE", tile)
    expected, ours = (jax.jit(functools.partial(value_and_gradients, f)) for f in (dense, stepwise))

    @settings(max_examples=8, deadline=None)
    @given(seed=st.integers(0, 2**20), longest=st.sampled_from([1, 40, 150, 400]), shuffled=st.booleans())
    def check(seed, longest, shuffled):
        rng = np.random.default_rng(seed)
        arrays, weights = draw(rng, 2, length, *heads, head_dim)
        arrays, (weights,) = float32(*arrays), float32(weights)
        segments = packed(rng, 2, length, longest)
        if shuffled:
            segments = rng.permuted(segments, axis=1)
        # Entries are of size 1; gradients are 0 where all segments are of length 1.
        assert_close(ours(arrays, segments, weights), expected(arrays, segments, weights), scale=1)

    check()


def test_padding_gets_finite_numbers_and_gives_no_gradient():
    rng = np.random.default_rng(0)
    arrays, _ = draw(rng, 3, 300, 4, 2)
    arrays = float32(*arrays)
    segments = packed(rng, 3, 300, 100)
    segments[1] = 0
    segments[2, 150:] = 0
    padding = segments == 0

    def real_sum(*arrays):
        out = stepwise(*arrays, segments)
        return jnp.sum(jnp.where(padding[..., None, None], 0, out) ** 2), out

    gradients, out = jax.jit(jax.grad(real_sum, argnums=(0, 1, 2), has_aux=True))(*arrays)
    assert np.isfinite(out).all()
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert not np.asarray(gradient)[padding].any()
        assert np.asarray(gradient)[~padding].any()


def test_bfloat16_stays_bfloat16_and_close():
    rng = np.random.default_rng(1)
    arrays, weights = draw(rng, 1, 256, 4, 2, 64)
    segments = packed(rng, 1, 256, 120)
    (weights,) = float32(weights)
    expected, ours = (jax.jit(functools.partial(value_and_gradients, f)) for f in (dense, stepwise))
    expected = expected(float32(*arrays), segments, weights)
    ours = ours([jnp.asarray(x, jnp.bfloat16) for x in arrays], segments, weights)
    assert all(mine.dtype == jnp.bfloat16 for mine in ours)
    assert_close(ours, expected, tolerance=2e-2)


@pytest.mark.parametrize("traced", [False, True])
def test_windows_are_left_to_blocks_of_queries(traced):
    rng = np.random.default_rng(2)
    arrays, weights = draw(rng, 2, 140, 4, 2)
    arrays, (weights,) = float32(*arrays), float32(weights)
    segments = packed(rng, 2, 140, 80)
    positions = rising(rng, segments, 3)  # with gaps, where slots and positions are not the same
    window = np.int32(20) if traced else 20
    ours, blocks = (
        jax.jit(functools.partial(value_and_gradients, f), static_argnums=() if traced else 4)(
            arrays, segments, weights, positions, window
        )
        # No `interpret`: the kernel itself would fail here.
        for f in (attend_splash, attend_blocks)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, blocks)


def test_float64_is_left_to_blocks_of_queries():
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        arrays, weights = draw(rng, 1, 64, 2, 1)
        segments = packed(rng, 1, 64, 40)
        ours, expected = (
            jax.jit(functools.partial(value_and_gradients, f))(arrays, segments, weights)
            for f in (attend_splash, dense)
        )
        for mine, theirs in zip(ours, expected, strict=True):
            assert mine.dtype == jnp.float64
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-11)


@needs_8_devices
def test_a_mesh_changes_neither_loss_nor_gradient(monkeypatch):
    """Inside of a scan over layers that are computed again."""
    monkeypatch.setitem(PATHS, "splash", stepwise)
    config = make_config(vocab_size=64, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2)
    params = jax.jit(functools.partial(llama.init_params, config))(jax.random.key(0))
    rng = np.random.default_rng(1)
    segments = packed(rng, 8, 130, 90)
    tokens = rng.integers(0, 64, segments.shape).astype(np.int32)
    positions = np.broadcast_to(np.arange(130, dtype=np.int32), tokens.shape)

    def loss(path, params, tokens, positions, segments):
        hidden = llama.apply(
            config, params, tokens, positions, segments, scan_layers=True, remat="full", attention=path
        )
        return jnp.sum(jnp.where(segments[..., None] > 0, hidden, 0) ** 3)

    step = jax.jit(jax.value_and_grad(loss, argnums=1), static_argnums=0)
    alone = step("blocks", params, tokens, positions, segments)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with jax.set_mesh(mesh):
        place = jax.tree.map(
            lambda axes: NamedSharding(mesh, partition_spec(axes)),
            llama.logical_axes(config),
            is_leaf=lambda node: isinstance(node, tuple),
        )
        batch = jax.device_put((tokens, positions, segments), NamedSharding(mesh, partition_spec(("batch", None))))
        spread = step("splash", jax.device_put(params, place), *batch)
    spread, alone = jax.tree.leaves(spread), jax.tree.leaves(alone)
    assert all(len(leaf.sharding.device_set) == 8 for leaf in spread)
    assert_close(spread, alone)


def shapes(batch, length, heads, kv_heads, head_dim, dtype):
    query, key = (jax.ShapeDtypeStruct((batch, length, n, head_dim), dtype) for n in (heads, kv_heads))
    return query, key, key, jax.ShapeDtypeStruct((batch, length), jnp.int32)


def gradients(query, key, value, segment_ids):
    def total(*arrays):
        return jnp.sum(PATHS["splash"](*arrays, segment_ids).astype(jnp.float32))

    return jax.grad(total, argnums=(0, 1, 2))(query, key, value)


@needs_8_devices
@pytest.mark.parametrize("sizes", [(1024, 28, 4, 128), (300, 9, 3, 64)], ids=["qwen2.5-coder-7b", "smollm2, padded"])
@pytest.mark.parametrize("spread", [False, True])
def test_a_tpu_gets_the_kernel_and_its_gradients(sizes, spread):
    """Lowered for a TPU on a machine without one, as an ahead-of-time compilation does."""
    tensor = 2 if sizes[2] % 2 == 0 else 1
    mesh = make_mesh({"fsdp": -1, "tensor": tensor}) if spread else make_mesh({}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        program = jax.jit(gradients).trace(*shapes(8, *sizes, jnp.bfloat16)).lower(lowering_platforms=("tpu",))
    names = [
        line.partition("kernel_name = ")[2].split('"')[1]
        for line in program.as_text().splitlines()
        if "@tpu_custom_call" in line
    ]
    assert sorted(names) == [
        "splash_mha_dkv_segmented_no_residuals",
        "splash_mha_dq_segmented_no_residuals",
        "splash_mha_fwd_segmented_residuals",
    ]


def test_other_backends_are_told_that_they_have_no_kernel():
    with pytest.raises(ValueError, match="interpret"):
        jax.jit(attend_splash).lower(*shapes(1, 128, 2, 1, 64, jnp.float32))


@pytest.mark.parametrize(("backend", "path"), [("tpu", "splash"), ("cpu", "tiles"), ("other", "blocks")])
def test_each_backend_takes_its_quickest_path(monkeypatch, backend, path):
    monkeypatch.setattr(attention.jax, "default_backend", lambda: backend)
    assert default_path() == path


def test_block_sizes_divide_every_row():
    for length in range(128, 8320, 128):
        for head_dim, dtype, largest in [
            (64, jnp.bfloat16, 512),
            (128, jnp.bfloat16, 512),
            (128, jnp.float32, 512),
            (256, jnp.float32, 512),
            (320, jnp.float32, 341),
            (512, jnp.float32, 256),
            (8192, jnp.float32, 128),
        ]:
            sizes = splash.block_sizes(length, head_dim, dtype)
            side = sizes.block_q
            assert sizes.has_backward_blocks
            assert sizes == splash.kernels.BlockSizes(
                **dict.fromkeys(
                    ("block_q", "block_kv", "block_q_dkv", "block_kv_dkv", "block_q_dq", "block_kv_dq"), side
                )
            )
            assert side % 128 == 0
            assert length % side == 0
            assert side <= max(largest, 128)
            # None that is larger would do.
            assert not any(length % wider == 0 for wider in range(side + 128, largest + 1, 128))
