"""What is read from programs that real compilers made: the files in ``hlo/`` are cut from their texts.

All but ``tpu_fused.txt`` come from one program, gradients of three layers of two products each, [D, F] and [F, D], in a
scan that computes layers again in the backward pass, float32 weights split over all devices, bfloat16 products.
``tpu_fused.txt`` is the backward scan of configs/ds67b.py on v5e:4x4, of all its exchange one gathered weight.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from rcjax.plan.hlo import by_kind, collectives
from rcjax.sharding import make_mesh, named

LAYERS = 3


def found(name, devices):
    return by_kind(collectives((Path(__file__).parent / "hlo" / name).read_text(), devices))


def test_gpu_gathers_weights_twice_and_scatters_gradients_once():
    weights = LAYERS * 2 * 1024 * 2048 * 2
    kinds = found("gpu.txt", 8)
    assert kinds["all-gather"] == (2 * LAYERS, 2 * weights * 7 / 8)  # both of a layer in one operation
    assert kinds["reduce-scatter"] == (LAYERS, weights * 7 / 8)
    assert kinds["all-reduce"] == (1, 2 * 4 * 7 / 8)  # the loss


def test_cpu_gathers_weights_twice_and_sums_gradients():
    weights = LAYERS * 2 * 64 * 128 * 4
    kinds = found("cpu.txt", 4)
    assert kinds["all-gather"] == (2 * 2 * LAYERS, 2 * weights * 3 / 4)
    assert kinds["all-reduce"] == (LAYERS + 1, 2 * (weights + 4) * 3 / 4)


def test_tpu_passes_parts_of_weights_around_a_ring_beside_the_products():
    """Loops of eight rounds are unrolled to four, in each of which parts go both ways twice; one part goes ahead."""
    part = 4096 * 11008 * 2 // 16
    kinds = found("tpu_windows.txt", 16)
    assert kinds["collective-permute"] == (5 * LAYERS * 17, 5 * LAYERS * 17 * part)
    assert kinds["all-gather"] == (LAYERS, LAYERS * 15 * part)


def test_tpu_of_64_chips_gathers_by_sums():
    weight = 4096 * 8192 * 2
    kinds = found("tpu_sums.txt", 64)
    assert list(kinds) == ["all-reduce"]
    assert kinds["all-reduce"] == (6 * LAYERS + 1, 2 * (6 * LAYERS * weight + 4) * 63 / 64)


def test_what_is_fused_with_products_counts_once():
    """Beginning, middle and end of an asynchronous operation stand in fusions of their own."""
    text = (Path(__file__).parent / "hlo" / "tpu_fused.txt").read_text()
    assert text.count(" all-gather(") == 3
    assert found("tpu_fused.txt", 16) == {"all-gather": (32, 32 * 4096 * 11008 * 2 * 15 / 16)}


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("replica_groups={{0,2},{1,3},{4,6},{5,7}}", (0, 2)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", (0, 2, 4, 6)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", (0, 1, 4, 5)),
        ("replica_groups={}", tuple(range(8))),
        ("source_target_pairs={{3,1},{1,3}}", (3, 1)),
    ],
)
def test_every_way_to_write_groups_is_read(groups, members):
    kind = "collective-permute" if "source" in groups else "all-to-all"
    line = f"  ROOT %x = f32[4]{{0}} {kind}(%y), channel_id=1, {groups}, dimensions={{0}}"
    text = f"ENTRY %main () -> f32[4] {{\n{line}\n}}\n"
    (operation,) = collectives(text, 8)
    assert operation.members == members


@pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
def test_a_loop_runs_as_often_as_it_says_or_as_it_is_told_where_data_decide():
    mesh = make_mesh({"data": 8}, jax.devices()[:8])

    def sums(x, count):
        def twice(_, x):
            return jax.lax.psum(x, "data") * 0.5

        x = jax.lax.fori_loop(0, 5, twice, x)
        return jax.lax.fori_loop(0, count, twice, x)

    with jax.set_mesh(mesh):
        spec = PartitionSpec("data")
        run = jax.jit(
            jax.shard_map(sums, in_specs=(spec, PartitionSpec()), out_specs=spec, check_vma=False),
            in_shardings=(named(mesh, spec), named(mesh, PartitionSpec())),
        )
        text = run.lower(jax.ShapeDtypeStruct((8, 100), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))
        text = text.compile().as_text()
    assert by_kind(collectives(text, 8)) == {"all-reduce": (5 + 1, 6 * 2 * 400 * 7 / 8)}
    assert by_kind(collectives(text, 8, unknown_trips=7)) == {"all-reduce": (5 + 7, 12 * 2 * 400 * 7 / 8)}
