"""Meshes and rules: what is laid where, and what is refused with which mend, before anything is allocated."""

from __future__ import annotations

import dataclasses
import math
import re

import jax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from configs import base, tiny
from rcjax.layout import PRESETS, RULE_SETS, layout_of, mesh_of, mesh_shape
from rcjax.pipeline import Pipeline
from rcjax.sharding import (
    MESH_AXES,
    Placed,
    check_divides,
    make_mesh,
    mesh_sizes,
    over_slices,
    partition_spec,
    tensor_spec,
)
from rcjax.train.program import check_settings, make_program
from rcjax.train.state import check_mesh
from rcjax.workdir import Workdir
from tests.layouts import LLAMA, TEACHER, config_of


def mesh_like(**sizes: int) -> AbstractMesh:
    return AbstractMesh(tuple(sizes.get(axis, 1) for axis in MESH_AXES), MESH_AXES)


def config_with(preset="", rules=None, **mesh):
    config = base.get_config()
    config.sharding.preset = preset
    config.sharding.update(rules or {})
    config.mesh.update(mesh)
    return config


# ---- which mesh


@pytest.mark.parametrize(
    ("preset", "given", "expected"),
    [
        ("", {}, "data=16"),
        ("", dict(fsdp=-1), "fsdp=16"),
        ("", dict(fsdp=4), "data=4 fsdp=4"),
        ("zero1", {}, "data=16"),
        ("zero1", dict(tensor=4), "data=4 tensor=4"),
        ("fsdp", {}, "fsdp=16"),
        ("fsdp", dict(fsdp=4), "data=4 fsdp=4"),
        ("fsdp", dict(data=-1, fsdp=2), "data=8 fsdp=2"),
        ("fsdp", dict(data=-1), "data=16"),
        ("fsdp+tensor", {}, "fsdp=8 tensor=2"),
        ("fsdp+tensor", dict(tensor=8), "fsdp=2 tensor=8"),
        ("hybrid", {}, "replica=2 fsdp=8"),
        ("hybrid", dict(replica=4), "replica=4 fsdp=4"),
        ("hybrid", dict(fsdp=4), "replica=2 data=2 fsdp=4"),
    ],
)
def test_what_the_mesh_gives_wins_over_the_preset_and_what_is_left_goes_on(preset, given, expected):
    sizes = mesh_sizes(mesh_shape(config_with(preset, **given), slices=2), 16)
    assert " ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) == expected


def test_a_mesh_has_every_device_once():
    mesh = mesh_of(config_with("fsdp+tensor"))
    assert dict(mesh.shape) == dict(replica=1, data=1, fsdp=len(jax.devices()) // 2, tensor=2)
    assert sorted(device.id for device in mesh.devices.flat) == [device.id for device in jax.devices()]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (dict(data=3), "data=3 makes 3, but there are 8 devices; nearest meshes that do: data=4 fsdp=2, "),
        (dict(data=3, tensor=-1), "data=3 makes 3, which does not divide 8 devices; nearest meshes that do: data=4 "),
        (dict(), "all axes are 1, which makes 1, but there are 8 devices; nearest"),
        (dict(data=-1, fsdp=-1), "only one axis may be -1, got data, fsdp"),
        (dict(data=0), "config.mesh.data is 0; expected a positive size or -1"),
        (dict(rows=8), "unknown axis 'rows'; axes are replica, data, fsdp, tensor"),
    ],
)
def test_sizes_that_do_not_multiply_to_the_devices_are_refused_with_near_ones(shape, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        mesh_sizes(shape, 8)


# ---- what a mesh does not divide


@pytest.mark.parametrize(
    ("mesh", "changes", "words"),
    [
        (
            dict(data=1, tensor=8),
            {},
            "dimension 2 (kv_heads) of layers/attention/key/kernel has size 2, which tensor=8 does not divide; "
            "nearest meshes that do: fsdp=4 tensor=2, data=2 fsdp=2 tensor=2, data=4 tensor=2",
        ),
        (
            dict(data=2, fsdp=4),
            dict(hidden_size=18),
            "dimension 1 (embed) of embed/embedding has size 18, which fsdp=4 does not divide; "
            "nearest meshes that do: data=4 fsdp=2, ",
        ),
        (
            dict(data=1, fsdp=2, tensor=4),
            dict(num_kv_heads=4, intermediate_size=34),
            "dimension 1 (mlp) of layers/mlp/down/kernel has size 34, which tensor=4 does not divide; "
            "nearest meshes that do: fsdp=4 tensor=2, ",
        ),
    ],
)
def test_a_mesh_that_does_not_divide_a_dimension_is_refused_with_near_ones(mesh, changes, words):
    config, model = config_with(**mesh), dataclasses.replace(LLAMA, **changes)
    with pytest.raises(ValueError, match=re.escape(words)) as refusal:
        make_program(config, model, mesh_of(config), 10)
    for near in str(refusal.value).split("that do: ")[1].split(", "):  # what is named does
        sizes = {axis: int(size) for axis, size in (word.split("=") for word in near.split())}
        assert math.prod(sizes.values()) == 8
        config = config_with(**dict(data=1) | sizes)
        check_mesh(model, layout_of(config), mesh_of(config))


def test_a_teacher_that_the_mesh_does_not_divide_is_named():
    config = config_of("fsdp", "frozen")
    with pytest.raises(ValueError, match=r"\(embed\) of the teacher's embed/embedding has size 12, which fsdp=8"):
        make_program(config, LLAMA, mesh_of(config), 10, teacher=dataclasses.replace(TEACHER, hidden_size=12))
    config.sharding.teacher = "tensor"
    make_program(config, LLAMA, mesh_of(config), 10, teacher=dataclasses.replace(TEACHER, hidden_size=12))


def test_where_no_mesh_does_that_is_said():
    everywhere = {"embed": MESH_AXES}
    with pytest.raises(ValueError, match=r"replica\*data\*fsdp\*tensor=8 does not divide; no mesh of 8 devices does"):
        check_divides(mesh_like(data=8), [Placed("scale", (12,), ("embed",), everywhere)])


def test_a_pipeline_refuses_a_mesh_before_there_is_a_vocabulary(tmp_path):
    config = tiny.get_config()
    config.mesh.tensor = 8
    with pytest.raises(ValueError, match=r"\(kv_heads\) of layers/.* has size 4, .* do: fsdp=2 tensor=4, data=2 tens"):
        Pipeline(config, Workdir(tmp_path)).check()
    config.mesh.tensor = 2
    Pipeline(config, Workdir(tmp_path)).check()
    assert not list(tmp_path.iterdir())


# ---- slices


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (dict(replica=4, data=1), (4, 1)),
        (dict(replica=1, data=8), (1, 4)),
        (dict(replica=2, data=6), (2, 2)),
        (dict(replica=8, data=1), (4, 1)),
        (dict(replica=2, data=1), None),
        (dict(replica=3, data=1), None),
    ],
)
def test_replica_lies_over_slices_then_data(sizes, expected):
    found = over_slices(sizes, 4)
    assert (found and (found["replica"], found["data"])) == expected


@pytest.fixture
def two_slices(monkeypatch):
    """Devices of two TPU slices that are not there."""
    pytest.importorskip("libtpu", reason="needs libtpu, which knows TPU topologies: pip install libtpu==0.0.42.1")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4", num_slices=2).devices


def test_devices_of_several_slices_are_laid_out_so_that_replica_crosses_between_them(two_slices):
    mesh = mesh_of(config_with("hybrid"), two_slices)
    assert dict(mesh.shape) == dict(replica=2, data=1, fsdp=8, tensor=1)
    for number, group in enumerate(mesh.devices):
        assert {device.slice_index for device in group.flat} == {number}
    with pytest.raises(ValueError, match=r"do not lie over 2 slices of 8 devices, and no other .*preset=hybrid"):
        mesh_of(config_with("fsdp"), two_slices)
    with pytest.raises(ValueError, match=r"replica=3 makes 3, .* nearest meshes that do: replica=4 fsdp=4, "):
        make_mesh(dict(replica=3, fsdp=-1), two_slices)


# ---- rules


def test_any_splits_the_longest_dimension_that_is_free_and_divided():
    mesh = mesh_like(replica=2, data=4, fsdp=1, tensor=2)

    def spec(shape, axes):
        return tensor_spec(mesh, Placed("tensor", shape, axes, RULE_SETS["zero"]))

    both = ("data", "replica")
    assert spec((32, 64, 8, 16), ("layers", "embed", "heads", None)) == PartitionSpec(None, both, "tensor", None)
    assert spec((16, 16), ("embed", None)) == PartitionSpec(both, None)  # the first of equal ones
    assert spec((64, 12), ("vocab", "embed")) == PartitionSpec("tensor", "data")  # 8 does not divide 12, 4 does
    assert spec((8, 64, 24), ("layers", "heads", None)) == PartitionSpec(None, "tensor", both)
    assert spec((8, 6), ("layers", None)) == PartitionSpec(None, None)


def test_one_mesh_axis_is_not_put_on_two_dimensions():
    with pytest.raises(ValueError, match="mesh axis 'fsdp' on two dimensions of one tensor, 'embed' and 'mlp'"):
        partition_spec(("embed", "mlp"), {"embed": ("fsdp",), "mlp": ("tensor", "fsdp")})


def test_a_rule_that_is_given_wins_over_the_preset():
    layout = layout_of(
        config_with("zero2", rules=dict(optimizer="fsdp", ema={"embed": "data", "mlp": ("fsdp", "tensor")}))
    )
    assert (layout.params, layout.gradients) == (RULE_SETS["tensor"], RULE_SETS["zero"])
    assert layout.optimizer == RULE_SETS["fsdp"]
    assert layout.ema == {"embed": ("data",), "mlp": ("fsdp", "tensor")}


@pytest.mark.parametrize(
    ("preset", "rules", "words"),
    [
        ("zero3", {}, "config.sharding.preset is 'zero3'; expected one of zero1, zero2, fsdp, fsdp+tensor, hybrid, or"),
        ("", dict(params="whole"), "config.sharding.params is 'whole'; expected one of replicated, tensor, fsdp, "),
        ("", dict(ema={"width": "fsdp"}), "config.sharding.ema: unknown logical axis 'width'; there are layers, embed"),
        ("", dict(teacher={"embed": "fsd"}), "config.sharding.teacher: embed is split over unknown axis 'fsd'; axes"),
        ("", dict(optimizer=3), "config.sharding.optimizer is 3; expected a name, or rules"),
    ],
)
def test_unknown_presets_and_rules_are_refused_by_field(preset, rules, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        check_settings(config_with(preset, rules=rules))


def test_every_preset_names_rules_for_everything():
    for preset in PRESETS.values():
        assert set(preset["rules"]) == {field.name for field in dataclasses.fields(layout_of(base.get_config()))}
        assert set(preset["rules"].values()) <= set(RULE_SETS)
