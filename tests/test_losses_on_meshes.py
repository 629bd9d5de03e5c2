"""The loss on a mesh: the same numbers, and hardly a word between devices while chunks are worked off."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcjax.losses import DIVERGENCES, vocabulary_loss
from rcjax.sharding import make_mesh, named, partition_spec
from tests.test_losses import random_case

pytestmark = pytest.mark.skipif(
    len(jax.devices()) < 8, reason="needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8"
)
MESHES = [
    {"data": 4},
    {"replica": 2, "data": 2},
    {"fsdp": 4, "tensor": 2},
    {"replica": 2, "fsdp": 2, "tensor": 2},
    {"tensor": 4},
]
# Every mesh with one divergence; every divergence, and a teacher of another network, with the mesh that has most axes.
CASES = [(shape, "forward_kl") for shape in MESHES] + [
    (MESHES[3], name) for name in DIVERGENCES if name != "forward_kl"
]
COLLECTIVE = re.compile(r"= (.*?) (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
BATCH, SLOTS, WIDTH, VOCABULARY, CHUNK = 4, 48, 8, 136, 8


def gradients_of(mesh, hidden, head, labels, *, divergence="forward_kl", teacher=None):
    """(jitted (hidden, head, labels, teacher) -> loss, parts and gradients, its arguments laid out on the mesh)"""

    @jax.jit
    def run(hidden, head, labels, teacher):
        def loss(hidden, head):
            options = dict(ce_weight=0.3, kd_weight=0.7, divergence=divergence, temperature=1.5, chunk=CHUNK)
            return vocabulary_loss(hidden, head, labels, vocab_size=VOCABULARY - 3, teacher=teacher, **options)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, head)

    def lay(array, *axes):
        return array if mesh is None else jax.device_put(array, named(mesh, partition_spec(axes)))

    arguments = (
        lay(hidden, "batch"),
        lay(head, "embed", "vocab"),
        {name: lay(array, "batch") for name, array in labels.items()},
        teacher and (lay(teacher[0], "batch"), lay(teacher[1], "embed", "vocab")),
    )
    return run, arguments


def case(seed, vocabulary=VOCABULARY, **changes):
    hidden, head, labels = random_case(
        seed, BATCH, SLOTS, WIDTH, vocabulary, **{"singles": SLOTS, "pairs": SLOTS // 2} | changes
    )
    for name in ("single_targets", "pair_targets"):
        labels[name] = np.minimum(labels[name], VOCABULARY - 4)
    return jnp.asarray(hidden), jnp.asarray(head), labels


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("shape", "divergence", "taught"),
    [(*case, False) for case in CASES] + [(MESHES[3], name, True) for name in DIVERGENCES] + [(*CASES[0], True)],
    ids=str,
)
def test_every_mesh_gives_the_numbers_of_one_device(shape, divergence, taught):
    hidden, head, labels = case(3)
    rng = np.random.default_rng(4)
    teacher = None
    if taught:  # another network, of another width
        teacher = jnp.asarray(rng.normal(size=(BATCH, SLOTS, 16))), jnp.asarray(rng.normal(size=(16, VOCABULARY)))
    run, arguments = gradients_of(None, hidden, head, labels, divergence=divergence, teacher=teacher)
    expected = run(*arguments)
    mesh = make_mesh(shape, jax.devices()[: math.prod(shape.values())])
    with jax.set_mesh(mesh):
        run, arguments = gradients_of(mesh, hidden, head, labels, divergence=divergence, teacher=teacher)
        ours = run(*arguments)
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-11, atol=1e-13)


def numbers_sent(text: str) -> dict[str, list[int]]:
    """Elements of the largest array of every collective, inside of loops and outside, of a compiled program."""
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    sent: dict[str, list[int]] = {"inside": [], "outside": []}
    where = "outside"
    for line in text.splitlines():
        if opened := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            where = "inside" if opened[1] in bodies else "outside"
        if found := COLLECTIVE.search(line):
            shapes = re.findall(r"\w+\[([\d,]*)\]", found[1])
            sent[where].append(max(math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes))
    return sent


@pytest.mark.parametrize(("shape", "divergence"), CASES, ids=str)
def test_inside_of_the_loop_devices_exchange_a_number_a_label_at_most(shape, divergence):
    hidden, head, labels = case(5)
    mesh = make_mesh(shape, jax.devices()[: math.prod(shape.values())])
    with jax.set_mesh(mesh):
        run, arguments = gradients_of(mesh, hidden, head, labels, divergence=divergence)
        sent = numbers_sent(run.lower(*arguments).compile().as_text())
    rows = BATCH // math.prod(size for axis, size in shape.items() if axis != "tensor")
    if shape.get("tensor", 1) == 1:
        assert not sent["inside"]
    else:
        assert sent["inside"]
        assert max(sent["inside"]) <= 2 * rows * CHUNK  # teacher's and student's: no logits
    # What crosses outside is of the size of the hidden states or of the projection: never logits of all labels.
    assert max(sent["outside"], default=0) <= max(hidden.size, head.size)
    assert max(hidden.size, head.size) < BATCH * SLOTS * VOCABULARY // 10


def test_the_whole_step_of_a_sharded_vocabulary_gathers_no_logits():
    """Through the model too: tied and untied heads, packed rows, parameters split over fsdp and tensor."""
    from ml_collections import ConfigDict

    from rcjax.objective import make_objective
    from rcjax.packing import PAIR_ARRAYS, SINGLE_ARRAYS, TOKEN_ARRAYS
    from rcjax.sharding import row_shards
    from rcjax.train.state import abstract_state, make_optimizer, state_shardings
    from rcjax.train.step import LossSettings, make_steps
    from tests.model.peers import make_config

    length, chunk = 256, 16
    fields = dict(learning_rate=1e-4, warmup_ratio=0.0, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=1.0)
    for tied in (False, True):
        model = make_config(vocab_size=4096, tie_embeddings=tied)
        mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
        tx, schedule = make_optimizer(ConfigDict(fields), 10)
        shardings = state_shardings(model, tx, mesh)
        settings = LossSettings(model=model, objective=make_objective("reference"), chunk=chunk)
        steps = make_steps(settings, tx, schedule, shardings, mesh)
        rows = row_shards(mesh)
        arrays = {
            name: jax.ShapeDtypeStruct((rows, share), dtype, sharding=steps.row_sharding)
            for names, share in ((TOKEN_ARRAYS | SINGLE_ARRAYS, length), (PAIR_ARRAYS, length // 2))
            for name, dtype in names.items()
        }
        with jax.set_mesh(mesh):
            state = abstract_state(model, tx, shardings)
            text = steps.accumulate.lower(state.params, jax.eval_shape(steps.zeros), arrays).compile().as_text()
        sent = numbers_sent(text)
        assert max(sent["inside"]) <= max(2 * chunk, model.hidden_size * length)  # a label's numbers; a layer's states
        # The largest piece that crosses is a device's columns of the projection: V / 2 x D.
        assert max(sent["outside"]) <= model.vocab_size * model.hidden_size
        assert model.vocab_size * model.hidden_size < length * model.vocab_size // 2
