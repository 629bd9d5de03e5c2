"""Which checkpoints are made and kept, and what becomes of files that are cut short or gone."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcjax.checkpoint import Checkpoints
from rcjax.train.state import TrainState


def state(value):
    params = {"kernel": jnp.full((40, 30), value, jnp.float32), "scale": jnp.full(7, value, jnp.float32)}
    return TrainState(jnp.int32(value), jnp.int32(0), params, ())


def abstract():
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state(0))


@pytest.fixture
def checkpoints(tmp_path):
    made = []

    def make(**settings):
        made.append(Checkpoints(tmp_path / "checkpoints", **settings))
        return made[-1]

    yield make
    for each in made:
        each.abandon()


def test_the_newest_and_every_third_are_kept(checkpoints):
    ours = checkpoints(keep=2, keep_every=3)
    for step in range(1, 9):
        ours.save(step, state(step), {"iterator": step}, last=step == 8)
    assert sorted(int(path.name) for path in ours.directory.iterdir()) == [3, 6, 7, 8]
    for step in (3, 8):
        found, data = ours.restore(abstract(), step)
        assert data == {"iterator": step}
        assert np.array_equal(found.params["kernel"], state(step).params["kernel"])
    assert (ours.before(8), ours.before(7), ours.before(3)) == (7, 6, None)
    ours.drop_from(7)
    assert ours.latest() == 6


def test_steps_and_minutes_say_when_one_is_due(checkpoints):
    now = [0.0]
    ours = checkpoints(every=10, minutes=2, clock=lambda: now[0])
    assert [step for step in range(1, 31) if ours.due(step)] == [10, 20, 30]
    now[0] = 119.0
    assert not ours.due(31)
    now[0] = 121.0
    assert ours.due(31)
    ours.save(31, state(1), {}, last=True)
    assert not ours.due(32), "the clock starts again"
    now[0] = 242.0
    assert ours.due(33)
    assert not any(checkpoints(every=0, clock=lambda: now[0]).due(step) for step in range(1, 30))


@pytest.mark.parametrize(
    "file", ["state/params.kernel/0.0", "state/params.kernel/.zarray", "data/metadata", "about/metadata"]
)
@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_file_that_is_cut_short_or_gone_is_an_error_in_one_sentence(checkpoints, file, harm):
    ours = checkpoints()
    ours.save(4, state(4), {"iterator": 4}, last=True)
    path = ours.directory / "4" / file
    if harm == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.unlink()
    with pytest.raises(ValueError, match=r"checkpoint .*/4 can not be restored .*; delete it to go on") as raised:
        checkpoints(read_only=True).restore(abstract())
    assert "\n" not in str(raised.value)
