"""The GPU's kernel is dense masked attention, in value and gradient: run step by step here, and lowered for CUDA."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding

from rcjax.model import attention, flash
from rcjax.model.attention import attend_blocks, attend_flash
from rcjax.sharding import make_mesh, partition_spec
from tests.model.test_attention import dense, draw, packed, rising, value_and_gradients
from tests.model.test_splash import assert_close, float32, needs_8_devices

SMALL = flash.Tiles(flash.Tile(32, 16, 4, 2), flash.Tile(16, 32, 4, 2), flash.Tile(32, 16, 4, 2))  # rows have many then
stepwise = functools.partial(flash.attend_causal, tiles=SMALL, interpret=True)


@pytest.mark.parametrize(
    ("length", "heads", "head_dim"), [(128, (2, 2), 64), (192, (4, 2), 16), (100, (3, 1), 12), (40, (2, 1), 128)]
)
@pytest.mark.parametrize("longest", [1, 50, 400])
def test_kernel_equals_dense_attention(length, heads, head_dim, longest):
    rng = np.random.default_rng(longest)
    arrays, weights = draw(rng, 2, length, *heads, head_dim)
    arrays, (weights,) = float32(*arrays), float32(weights)
    segments = packed(rng, 2, length, longest)
    segments[1, length // 2 :] = 0  # padding behind
    expected, ours = (jax.jit(functools.partial(value_and_gradients, f)) for f in (dense, stepwise))
    assert_close(ours(arrays, segments, weights), expected(arrays, segments, weights), scale=1)


def test_bfloat16_takes_the_kernel_and_stays_close(monkeypatch):
    rng = np.random.default_rng(1)
    arrays, weights = draw(rng, 1, 192, 4, 2, 64)
    segments = packed(rng, 1, 192, 90)
    (weights,) = float32(weights)
    taken = []
    monkeypatch.setattr(flash, "attend_causal", lambda *a, **k: (taken.append(1), stepwise(*a))[1])
    expected = value_and_gradients(dense, float32(*arrays), segments, weights)
    ours = value_and_gradients(attend_flash, [jnp.asarray(x, jnp.bfloat16) for x in arrays], segments, weights)
    assert taken
    assert all(mine.dtype == jnp.bfloat16 for mine in ours)
    assert_close(ours, expected, tolerance=2e-2)


@pytest.mark.parametrize("window", [1, 20, 1000])
@pytest.mark.parametrize("step", [1, 3])
def test_a_window_is_measured_in_positions(window, step):
    rng = np.random.default_rng(window)
    arrays, weights = draw(rng, 2, 140, 4, 2, 16)
    arrays, (weights,) = float32(*arrays), float32(weights)
    segments = packed(rng, 2, 140, 80)
    reach = rising(rng, segments, step), jnp.int32(window)
    expected, ours = (jax.jit(functools.partial(value_and_gradients, f)) for f in (dense, stepwise))
    assert_close(ours(arrays, segments, weights, *reach), expected(arrays, segments, weights, *reach), scale=1)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 30), st.one_of(st.none(), st.integers(1, 50)))
@settings(max_examples=50, deadline=None)
def test_what_a_slot_attends_to_is_the_run_that_the_mask_allows(seed, length, longest, window):
    rng = np.random.default_rng(seed)
    segments = packed(rng, 2, length, longest)
    positions = rising(rng, segments, 3)
    first = np.asarray(flash.first_seen(segments, positions, window))
    mask = (segments[:, :, None] == segments[:, None]) & np.tri(length, dtype=bool)
    if window is not None:
        mask &= positions[:, :, None] - positions[:, None] < window
    mask = np.where((segments == 0)[..., None], np.eye(length, dtype=bool), mask)
    slots = np.arange(length)
    np.testing.assert_array_equal((slots >= first[..., None]) & (slots <= slots[:, None]), mask)
    assert (np.diff(first) >= 0).all()  # which the bounds of the loops over tiles take for granted


def test_tiles_that_no_segment_needs_are_not_read():
    """Whatever lies there: not even a nan gets out."""
    rng = np.random.default_rng(5)
    (query, key, value), weights = draw(rng, 1, 256, 2, 2, 16)
    segments = np.repeat([[1, 2]], 128, axis=1)
    key[:, :128], value[:, :128] = np.nan, np.nan
    arrays, (weights,) = float32(query, key, value), float32(weights)
    weights[:, :128] = 0
    out, d_query, d_key, d_value = value_and_gradients(stepwise, arrays, segments, weights)
    for array in (out, d_query, d_key, d_value):
        assert np.isfinite(np.asarray(array)[:, 128:]).all()


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize(("heads", "head_dim", "length"), [((8, 2), 64, 1000), ((2, 2), 128, 2048), ((2, 1), 256, 640)])
@pytest.mark.parametrize("window", [None, 100])
def test_compiled_for_the_gpu_it_stays_close(heads, head_dim, length, window):
    rng = np.random.default_rng(4)
    arrays, weights = draw(rng, 2, length, *heads, head_dim)
    segments = packed(rng, 2, length, 600)
    reach = () if window is None else (rising(rng, segments, 3), jnp.int32(window))
    (weights,) = float32(weights)
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    expected, ours = (jax.jit(functools.partial(value_and_gradients, f)) for f in (dense, flash.attend_causal))
    with jax.default_matmul_precision("highest"):
        exact = expected([x.astype(jnp.float32) for x in arrays], segments, weights, *reach)
    assert_close(ours(arrays, segments, weights, *reach), exact, tolerance=2e-2)


def test_float32_is_left_to_blocks_of_queries():
    rng = np.random.default_rng(2)
    arrays, _ = draw(rng, 2, 140, 4, 2)
    arrays = float32(*arrays)
    segments = packed(rng, 2, 140, 80)
    positions = rising(rng, segments, 3)
    ours, blocks = (f(*arrays, segments, positions, None) for f in (attend_flash, attend_blocks))
    np.testing.assert_array_equal(*float32(ours, blocks))


@needs_8_devices
def test_on_a_mesh_each_device_works_its_own_rows_and_heads():
    rng = np.random.default_rng(3)
    arrays, weights = draw(rng, 4, 128, 4, 2, 16)
    arrays, (weights,) = float32(*arrays), float32(weights)
    segments = packed(rng, 4, 128, 60)
    expected = value_and_gradients(dense, arrays, segments, weights)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with jax.set_mesh(mesh):

        def lay(array, *axes):
            return jax.device_put(array, NamedSharding(mesh, partition_spec(axes)))

        arrays = [lay(x, "batch", None, name, None) for x, name in zip(arrays, ("heads", "kv_heads", "kv_heads"))]  # noqa: B905
        ours = jax.jit(functools.partial(value_and_gradients, stepwise))(arrays, lay(segments, "batch"), weights)
    assert_close(ours, expected, scale=1)


def test_it_lowers_to_triton_for_cuda():
    shapes = [jax.ShapeDtypeStruct((1, 256, n, 128), jnp.bfloat16) for n in (8, 2, 2)]
    segments = jax.ShapeDtypeStruct((1, 256), jnp.int32)

    def total(query, key, value, segments):
        return jnp.sum(flash.attend_causal(query, key, value, segments).astype(jnp.float32))

    gpu = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=gpu)
    with jax.sharding.use_abstract_mesh(mesh):  # jax 0.11 wants to know the GPU
        traced = jax.jit(jax.grad(total, (0, 1, 2))).trace(*shapes, segments)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call") >= 3  # forward, and the passes of the backward
    assert "triton" in text
    assert "stablehlo.while" not in text  # which would be run in every layer of a scan, and not once


def test_a_gpu_that_is_too_old_is_said_once(monkeypatch):
    class Old:
        device_kind, compute_capability = "Tesla T4", "7.5"

    attention._gpu_path.cache_clear()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [Old()])
    with pytest.warns(UserWarning, match=r"Tesla T4 .* compute capability"):
        assert attention.default_path() == "blocks"
    assert attention.default_path() == "blocks"  # and not again
    Old.compute_capability = "9.0"
    attention._gpu_path.cache_clear()
    assert attention.default_path() == "flash"
    attention._gpu_path.cache_clear()
