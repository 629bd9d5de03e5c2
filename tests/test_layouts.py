"""Presets: the same numbers wherever everything lies, and sent and kept what each of them promises."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks.profile import SCOPES, scopes_of
from rcjax import model as llama
from rcjax.checkpoint import Checkpoints
from rcjax.layout import PRESETS, mesh_of
from rcjax.model.llama import Embedding
from rcjax.plan import hlo
from rcjax.sharding import constrain, named, partition_spec
from tests.layouts import CASES, DEVICES, LLAMA, OWN, THREE_AXES, collectives, config_of, on_host, run_of, shapes_sent

pytestmark = pytest.mark.skipif(
    len(jax.devices()) < DEVICES, reason="needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8"
)


@functools.cache
def two_steps(kind: str, preset: str | None):
    """Losses, and parameters and average behind two optimizer steps."""
    run = run_of(kind, preset)
    state, losses = run.start(), []
    for number in range(2):
        state, loss = run.step(state, number)
        losses.append(loss)
    return losses, on_host((state.params, state.ema))


@pytest.mark.parametrize(("kind", "preset"), CASES)
def test_every_preset_trains_to_the_numbers_of_one_device(kind, preset):
    losses, trained = two_steps(kind, preset)
    expected_losses, expected = two_steps(kind, None)
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-6)
    for mine, theirs in zip(jax.tree.leaves(trained), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-6)  # a step moves a parameter by up to 1e-2
    moved = on_host(run_of(kind, preset).start().params)
    assert all(
        np.abs(new - old).max() > 1e-4 for new, old in zip(*map(jax.tree.leaves, (trained[0], moved)), strict=True)
    )


@pytest.mark.parametrize("preset", ["zero1", "zero2"])
def test_zero_gathers_no_parameter_for_a_microbatch_and_each_once_an_update(preset):
    run = run_of(OWN, preset)
    assert collectives(run.texts["accumulate"])["all-gather"] == 0
    gathered = shapes_sent(run.texts["update"], "all-gather")
    assert sorted(gathered) == sorted(leaf.shape for leaf in jax.tree.leaves(llama.abstract_params(LLAMA)))


@pytest.mark.parametrize(("kind", "preset"), [case for case in CASES if case[1] in ("", "zero1", "hybrid", THREE_AXES)])
def test_sums_that_groups_share_cross_between_them_once_a_step_alone(kind, preset):
    run = run_of(kind, preset)
    group_of = np.argwhere(np.ones(run.program.mesh.devices.shape))[:, :2]  # (replica, data) of every device
    across = {
        name: [
            sent
            for sent in hlo.collectives(text, DEVICES)
            if len({tuple(group_of[member]) for member in sent.members}) > 1
        ]
        for name, text in run.texts.items()
    }
    assert not across["accumulate"]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(llama.abstract_params(run.program.model)))
    assert sum(sent.total for sent in across["update"]) > 4 * parameters / DEVICES


def test_profiles_find_the_names_of_programs_and_parts():
    run = run_of(OWN, "")  # groups apart
    for name, text in run.texts.items():
        assert text.startswith(f"HloModule jit_{name},")
    assert set(scopes_of(run.texts["accumulate"]).values()) >= {*SCOPES} - {"optimizer"}
    assert "optimizer" in scopes_of(run.texts["update"]).values()


def test_no_device_gets_the_embedded_rows_of_all_groups():
    """Where a group has fewer slots than the table has rows; else it is the table that is gathered."""
    model, slots = dataclasses.replace(LLAMA, vocab_size=2048, hidden_size=32), 64
    mesh = mesh_of(config_of("hybrid"))
    kinds = dict(dtype=np.float32, param_dtype=np.float32)
    graph, _ = nnx.split(nnx.eval_shape(lambda: Embedding(model, rngs=nnx.Rngs(params=0), **kinds)))

    def loss(table, tokens):
        embed = nnx.merge(graph, nnx.State({"embedding": nnx.Param(table)}))
        return (constrain(embed(tokens), "batch", None, None) ** 2).sum()

    place, rows = (named(mesh, partition_spec(axes)) for axes in (("vocab", "embed"), ("batch",)))
    table = jax.ShapeDtypeStruct((2048, 32), np.float32, sharding=place)
    tokens = jax.ShapeDtypeStruct((DEVICES, slots), np.int32, sharding=rows)
    with jax.set_mesh(mesh):
        text = jax.jit(jax.grad(loss), out_shardings=place).lower(table, tokens).compile().as_text()
    assert (DEVICES, slots, 32) not in shapes_sent(text, "all-gather")
    assert shapes_sent(text, "all-to-all")


@pytest.mark.parametrize(("preset", "of_sums"), [("zero1", 1), ("zero2", 1 / DEVICES)])
def test_zero_keeps_every_parameter_on_each_device_and_an_eighth_of_the_optimizer(preset, of_sums):
    run = run_of(OWN, preset)
    state, sums = run.start(), run.sums()

    def share(tree, copies=1):
        """What a device keeps, of ``copies`` times the parameters."""
        kept = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(tree) if leaf.ndim)
        return kept / copies / sum(leaf.size for leaf in jax.tree.leaves(state.params))

    assert (share(state.params), share(state.opt_state, 2), share(sums["grads"])) == (1, 1 / DEVICES, of_sums)


@pytest.mark.parametrize(("saved", "restored"), [("zero1", "fsdp+tensor"), ("hybrid", "zero1")])
def test_a_run_goes_on_under_another_preset_and_mesh(tmp_path, saved, restored):
    run, other = run_of(OWN, saved), run_of(OWN, restored)
    state, _ = run.step(run.start(), 0)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {"iterator": {}})
    moved, _ = checkpoints.restore(other.abstract())
    checkpoints.close()
    (_, loss), expected = other.step(moved, 1), two_steps(OWN, None)[0][1]
    assert loss == pytest.approx(expected, rel=2e-6)
    assert run.step(state, 1)[1] == pytest.approx(expected, rel=2e-6)


def test_presets_differ_in_what_a_device_keeps():
    """None of them is another one under a second name."""
    programs = {preset: run_of(OWN, preset).program for preset in PRESETS}
    seen = {preset: str((made.shardings, made.steps.sums_shardings)) for preset, made in programs.items()}
    assert len(set(seen.values())) == len(PRESETS)
