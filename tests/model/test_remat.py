"""Remat policies keep what they say, where they say, and change no number."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcjax.model import llama
from rcjax.sharding import make_mesh
from rcjax.train.program import check_remat
from tests.model.peers import make_config

CONFIG = make_config()
TOKENS = np.arange(2 * 40, dtype=np.int32).reshape(2, 40) % CONFIG.vocab_size
POSITIONS = np.tile(np.arange(40, dtype=np.int32), (2, 1))


def total(params, remat, scan_layers):
    out = llama.apply(
        CONFIG,
        params,
        TOKENS,
        POSITIONS,
        np.ones_like(TOKENS),
        remat=remat,
        scan_layers=scan_layers,
        attention="blocks",
    )
    return jnp.sum(out**2)


@pytest.fixture(scope="module")
def params():
    return llama.init_params(CONFIG, jax.random.key(0))


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("remat", ["dots", "full", "offload"])
def test_gradients_are_those_without(params, remat, scan_layers):
    gradient = jax.jit(jax.grad(total), static_argnums=(1, 2))
    ours, expected = gradient(params, remat, scan_layers), gradient(params, "none", scan_layers)
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=1e-6)


def kept(params, remat):
    """(shapes of what a layer leaves in memory for the backward pass, of what it leaves on the host)"""
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda p: total(p, remat, True)))(params))
    forward = jaxpr[: jaxpr.index("scan[", jaxpr.index("scan[") + 1)]  # up to the backward scan
    stacked = re.findall(r"(f32(?:<host>)?)\[2,([\d,]+)\]", forward)  # one entry for each of the two layers
    shapes = {(kind, tuple(map(int, shape.split(",")))) for kind, shape in stacked}
    return {s for k, s in shapes if k == "f32"}, {s for k, s in shapes if k == "f32<host>"}


def test_policies_keep_what_they_name(params):
    def activations(shapes):
        return {shape for shape in shapes if shape[:2] == (2, 40)}

    everything, _ = kept(params, "none")
    nothing, _ = kept(params, "full")
    dots, none_there = kept(params, "dots")
    here, there = kept(params, "offload")
    wide = (2, 40, CONFIG.intermediate_size)
    assert wide in activations(everything)
    assert wide in activations(dots)
    assert wide not in activations(nothing)
    assert not none_there
    assert wide in there
    assert wide not in activations(here)


def test_unknown_policy_is_refused_by_name():
    with pytest.raises(ValueError, match=r"config\.train\.remat is 'some'; expected one of none, dots, full, offload"):
        check_remat("some", make_mesh({"data": -1}))


def test_devices_without_host_memory_are_said():
    class Device:
        device_kind = "Toy"

        def addressable_memories(self):
            return []

    class Mesh:
        devices = np.array([Device()], object)

    with pytest.raises(ValueError, match=r"offload.*Toy.*use full"):
        check_remat("offload", Mesh())
    check_remat("full", Mesh())
