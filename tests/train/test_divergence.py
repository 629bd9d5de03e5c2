"""Copies that differ are found, and named, in every layout and type."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rcjax.model.llama import init_params
from rcjax.sharding import make_mesh
from rcjax.train.divergence import DivergenceError, check_copies
from rcjax.train.loop import train
from rcjax.train.metrics import read_metrics
from tests.examples import random_examples
from tests.processes import ended, environment, free_port, start
from tests.train.several_worker import MODEL, small_config

SHAPE = (8, 12)


def laid_out(mesh, spec, dtype=np.float32, change=None):
    """An array of random numbers; ``change`` (device id, index in its part, value) is what one device has otherwise."""
    numbers = np.random.default_rng(0).normal(size=SHAPE).astype(dtype)
    sharding = NamedSharding(mesh, spec)
    parts = []
    for device, index in sharding.addressable_devices_indices_map(SHAPE).items():
        part = numbers[index].copy()
        if change is not None and device.id == change[0]:
            part[change[1]] = change[2](part[change[1]])
        parts.append(jax.device_put(part, device))
    return jax.make_array_from_single_device_arrays(SHAPE, sharding, parts)


def last_bit(value):
    return np.nextafter(value, np.inf, dtype=value.dtype)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 2, "fsdp": 2, "tensor": 2})


def test_one_bit_on_one_device_is_found_and_named(mesh):
    whole, split = PartitionSpec(), PartitionSpec("fsdp", "tensor")
    good = {"head": laid_out(mesh, split), "norm": {"scale": laid_out(mesh, whole)}, "x": jnp.zeros(())}
    good["x"] = jax.device_put(good["x"], NamedSharding(mesh, whole))
    check_copies(good, 3)
    for name, spec, device, others in (
        ("norm/scale", whole, 5, "devices 0, 1, 2, 3, 4, 6, 7 of process 0"),
        ("head", split, 6, "devices 2 of process 0"),  # fsdp 1, tensor 0 is at data 0, too
    ):
        array = laid_out(mesh, spec, change=(device, (1, 2), last_bit))
        bad = {**good, "head": array} if name == "head" else {**good, "norm": {"scale": array}}
        with pytest.raises(DivergenceError) as caught:
            check_copies(bad, 40)
        said = str(caught.value)
        assert f"parameter {name} differ after step 40" in said
        assert others in said
        assert f" {device} of process 0" in said


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.int8, np.float32])
def test_every_type_is_compared_by_its_bits(mesh, dtype):
    same = laid_out(mesh, PartitionSpec(), dtype)
    check_copies({"w": same}, 1)
    check_copies({"w": jnp.full_like(same, np.nan if dtype != np.int8 else 1)}, 1)  # alike, though not equal
    wrong = laid_out(mesh, PartitionSpec(), dtype, change=(3, (0, 0), lambda value: value + np.ones((), dtype)))
    with pytest.raises(DivergenceError, match="3 of process 0"):
        check_copies({"w": wrong}, 1)


def test_entries_that_changed_places_are_found(mesh):
    numbers = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    swapped = laid_out(mesh, PartitionSpec(), change=(2, slice(None), lambda part: part[::-1]))
    assert np.asarray(swapped.addressable_shards[2].data).sum() == pytest.approx(numbers.sum(), rel=1e-5)
    with pytest.raises(DivergenceError):
        check_copies({"w": swapped}, 1)


def test_parts_that_no_other_device_has_need_no_company(mesh):
    check_copies({"w": laid_out(mesh, PartitionSpec(("data", "fsdp", "tensor")))}, 1)


def test_two_processes_both_end_with_one_sentence():
    command = [sys.executable, "-m", "tests.train.divergence_worker", f"127.0.0.1:{free_port()}", "2"]
    results = ended(start([[*command, str(index)] for index in range(2)], [environment(2)] * 2))
    assert [code for code, _, _ in results] == [2, 2]
    assert results[0][1] == "step 7 agrees\n"
    assert results[1][1] == ""
    said = "".join(errors for _, _, errors in results)
    assert said.count("copies of parameter w differ after step 8: devices") == 1
    assert "0 of process 0" in said
    assert "2048 of process 1" in said


def test_a_run_compares_them_when_it_is_told_to(tmp_path):
    """It starts from parameters of which one device has another copy, and finds out at the second step."""
    config = small_config()
    config.guards.divergence_every = 2

    def load(shardings):
        params = jax.jit(lambda key: init_params(MODEL, key), out_shardings=shardings)(jax.random.key(0))
        scale = params["norm"]["scale"]
        parts = [
            jax.device_put(np.asarray(shard.data) + np.float32(shard.device.id == 3), shard.device)
            for shard in scale.addressable_shards
        ]
        params["norm"]["scale"] = jax.make_array_from_single_device_arrays(scale.shape, scale.sharding, parts)
        return params

    with pytest.raises(DivergenceError, match=r"copies of parameter norm/scale differ after step 2: devices 3 of"):
        train(config, tmp_path, MODEL, [random_examples(0, 40)], [1], load=load)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1], "the step that is not to be trusted is not logged"
