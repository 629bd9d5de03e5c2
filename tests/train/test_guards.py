"""Steps that are not finite change nothing, spikes are told from noise, a hanging process shows its stacks."""

import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import base
from rcjax.model import LlamaConfig
from rcjax.sharding import make_mesh
from rcjax.train.guards import FEWEST, Guards, NotFiniteError, check_guards
from rcjax.train.program import make_program
from rcjax.train.state import init_state
from rcjax.train.step import NORMS

CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8
)


@pytest.fixture(scope="module")
def updated():
    """(program, states): of a step with finite gradients, of one without behind it, and of a finite one behind that."""
    config = base.get_config()
    config.optimizer.learning_rate = 1e-2
    config.teacher.name = "ema"
    config.teacher.every = 2
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    program = make_program(config, CONFIG, mesh, 100)
    state = init_state(CONFIG, program.tx, program.shardings, 0)
    zeros = program.steps.zeros()
    rng = np.random.default_rng(0)

    def sums(bad=None):
        grads = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), zeros["grads"])
        if bad is not None:
            grads["layers"]["mlp"]["down"]["kernel"] = grads["layers"]["mlp"]["down"]["kernel"].at[1, 0, 0].set(bad)
        # Arrays of its own: they are given away.
        return {**jax.tree.map(jnp.copy, zeros), "grads": grads, "loss": jnp.float32(1.0)}

    keep, found = jax.tree.map(np.asarray, state), []
    for bad in (None, None, np.nan, np.inf, np.nan, None):
        state, left, metrics = program.steps.update(state, sums(bad))
        keep = jax.tree.map(np.array, state)
        found.append((keep, jax.tree.map(np.array, left), jax.tree.map(np.array, metrics)))
    return program, found


def same(ours, theirs):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, ours, theirs)))


def test_a_step_that_is_not_finite_is_counted_and_changes_nothing(updated):
    _, ((_, _, first), (good, _, _), (after_nan, left, nan), (after_inf, _, _), _, (then, _, last)) = updated
    for state, skipped in ((after_nan, 1), (after_inf, 2)):
        for field in ("params", "opt_state", "ema"):
            assert same(getattr(state, field), getattr(good, field)), field
        assert (int(state.step), int(state.skipped)) == (2 + skipped, skipped)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(left)), "sums begin at 0 again"
    assert math.isnan(nan["grad_norm"])
    assert (int(first["skipped"]), int(nan["skipped"]), int(last["skipped"])) == (0, 1, 3)
    assert not same(then.params, good.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(then))
    # The learning rate goes on where it was: the third update of all.
    assert float(last["learning_rate"]) == float(updated[0].schedule(2))
    assert same(then.ema, good.ema), "every second update reaches the average, and this is the third, if the sixth step"


def test_its_norms_tell_the_layer(updated):
    norms = updated[1][2][2][NORMS]
    where = norms["layers"]["mlp"]["down"]["kernel"]
    assert where.shape == (2,)
    assert np.isfinite(where[0])
    assert np.isnan(where[1])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(norms["layers"]["attention"]))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updated[1][0][2][NORMS])), "costs nothing when all is well"


def guards(tmp_path, **settings):
    return Guards(**{"skips": 3, "spike": 6.0, "patience": 0, "dumps": tmp_path / "dumps", **settings})


def see(watch, step, loss, norm=1.0):
    return watch.see(step, {"loss": loss, "grad_norm": norm}, {"embed": np.array([np.nan])}, ["a", "b"])


def test_too_many_in_a_row_end_the_run_and_others_do_not(tmp_path):
    watch = guards(tmp_path)
    for step in range(1, 9):  # two bad ones, a good one ...
        see(watch, step, 1.0 if step % 3 == 0 else math.nan)
    see(watch, 9, 1.0)
    for step in (10, 11):
        see(watch, step, 1.0, norm=math.inf)
    with pytest.raises(NotFiniteError, match=r"the last 3 steps .*step-12\.json"):
        see(watch, 12, math.nan)
    dump = json.loads((tmp_path / "dumps/step-12.json").read_text())
    assert [entry["step"] for entry in dump] == [10, 11, 12]
    assert dump[0]["values"] == {"grad_norm": "inf"}
    assert dump[2]["examples"] == ["a", "b"]
    assert dump[2]["gradient norms"] == {"embed": ["nan"]}
    never = guards(tmp_path, skips=0)
    for step in range(50):
        assert see(never, step, math.nan) is None


def test_spikes_are_told_from_noise(tmp_path, capsys):
    rng = np.random.default_rng(1)
    watch = guards(tmp_path, patience=3)
    for step in range(300):  # falls, and is noisy
        assert see(watch, step, 2 * math.exp(-step / 100) + 0.02 * rng.normal()) is None
    assert capsys.readouterr().out == ""
    assert see(watch, 300, 4.0) is None
    assert see(watch, 301, 0.1) is None  # over already
    assert [see(watch, step, 4.0) for step in (302, 303, 304)] == [None, None, 302]
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2, "once a spike"
    assert "loss spike: 4.000 at step 302" in said[1]
    watch.forget()
    assert all(see(watch, step, 9.0 * step) is None for step in range(305, 305 + FEWEST)), "others to compare with"


def test_settings_that_mean_nothing_are_named():
    with pytest.raises(ValueError, match=r"config\.guards\.spike is -1"):
        check_guards(ConfigDict({"skips": 3, "spike": -1.0}))
    check_guards(base.get_config().guards)


HANGS = """
import threading, time
from rcjax.train.guards import watchdog
with watchdog(0.3) as alive:
    for _ in range(4):
        time.sleep(0.15)
        alive()
    print("silent so far", flush=True)
    def lost_in_thought():
        time.sleep(1.2)
    thread = threading.Thread(target=lost_in_thought)
    thread.start()
    thread.join()
time.sleep(0.5)
"""


def test_a_process_that_hangs_shows_every_stack():
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, check=True)
    assert done.stdout == "silent so far\n"
    assert 1 <= done.stderr.count("Timeout (0:00:00.3") <= 4
    assert "lost_in_thought" in done.stderr
    assert done.stderr.count("Thread 0x") >= 2
