"""Evaluation beside training: every due step, the right parameters, no result lost and none that holds training up."""

import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rcjax.train.evaluation import PeriodicEvaluation
from rcjax.train.metrics import MetricsWriter, read_metrics

STEPS = 10


@jax.jit
def advance(params):
    return jax.tree.map(lambda leaf: leaf * 1.5 + 1, params)


advance_in_place = jax.jit(lambda params: jax.tree.map(lambda leaf: leaf * 1.5 + 1, params), donate_argnums=0)


def value(params):
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params)), "the thread gets host arrays"
    return {"sum": float(sum(leaf.sum() for leaf in jax.tree.leaves(params)))}


def fresh():
    return {"a": jnp.arange(6.0).reshape(2, 3), "b": {"c": jnp.ones(4)}}


def expected():
    params, sums = fresh(), {}
    for step in range(1, STEPS + 1):
        params = advance(params)
        sums[step] = value(jax.tree.map(np.asarray, params))["sum"]
    return sums


def run(workdir, evaluate, every, stop=STEPS, start=0, params=None):
    """A training loop that gives its parameters' memory away, as the real one; returns the parameters."""
    params = params or fresh()
    metrics = MetricsWriter(workdir, resume_step=start or None)
    evaluations = PeriodicEvaluation(evaluate, every, metrics, workdir)
    evaluations.resume(start, params)
    for step in range(start + 1, stop + 1):
        params = advance_in_place(params)
        evaluations.after(step, params)
        metrics.write(step, {"loss": 1.0 / step})
    return params, evaluations, metrics


def found(workdir):
    return {row["step"]: row["heldout_sum"] for row in read_metrics(workdir) if "heldout_sum" in row}


def test_each_due_step_is_evaluated_with_its_own_parameters(tmp_path):
    params, evaluations, metrics = run(tmp_path, value, every=3)
    evaluations.close()
    metrics.close()
    sums = expected()
    assert found(tmp_path) == pytest.approx({step: sums[step] for step in (3, 6, 9)})
    assert float(sum(leaf.sum() for leaf in jax.tree.leaves(params))) == pytest.approx(sums[STEPS])
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("heldout_sum")] == [3, 6, 9]
    assert [event.step for event in events.Scalars("loss")] == list(range(1, STEPS + 1))
    assert all(row["heldout_seconds"] >= 0 for row in read_metrics(tmp_path) if "heldout_sum" in row)


def test_steps_go_on_while_it_runs_and_a_late_result_keeps_its_step(tmp_path):
    release = threading.Event()

    def slow(params):
        assert release.wait(60)
        return value(params)

    _, evaluations, metrics = run(tmp_path, slow, every=6)  # all ten steps run though nothing was released
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, STEPS + 1))
    release.set()
    evaluations.close()
    metrics.write(STEPS + 1, {"loss": 0.1})
    metrics.close()
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [*range(1, STEPS + 1), 6, STEPS + 1]
    assert found(tmp_path) == pytest.approx({6: expected()[6]})


def test_a_checkpoint_waits_for_earlier_results_alone(tmp_path):
    release = threading.Event()

    def slow(params):
        assert release.wait(60)
        return value(params)

    _, evaluations, metrics = run(tmp_path, slow, every=5, stop=5)
    evaluations.settle(before=5)  # that of step 5 itself can be found again from the checkpoint
    assert found(tmp_path) == {}
    threading.Timer(0.2, release.set).start()
    evaluations.settle(before=6)
    assert list(found(tmp_path)) == [5]
    evaluations.close()
    metrics.close()


def test_a_result_that_a_kill_took_is_found_again_from_the_checkpoint(tmp_path):
    params, _, metrics = run(tmp_path, None, every=5, stop=5)  # as if killed: step 5 was due and never logged
    metrics.close()
    _, evaluations, metrics = run(tmp_path, value, every=5, start=5, params=params)
    evaluations.close()
    metrics.close()
    sums = expected()
    assert found(tmp_path) == pytest.approx({5: sums[5], 10: sums[10]})
    before = (tmp_path / "metrics.jsonl").read_text()
    _, evaluations, metrics = run(tmp_path, value, every=5, start=10, params=fresh())
    evaluations.close()
    metrics.close()
    assert (tmp_path / "metrics.jsonl").read_text() == before, "what is there is not found twice"


def test_a_failure_is_said_and_training_goes_on(tmp_path, capsys):
    def broken(params):
        raise OSError("no sandbox here")

    _, evaluations, metrics = run(tmp_path, broken, every=4)
    evaluations.close()
    metrics.close()
    said = capsys.readouterr().out
    assert "evaluation of step 4 failed, training goes on: OSError: no sandbox here" in said
    assert "evaluation of step 8 failed" in said
    assert len(read_metrics(tmp_path)) == STEPS


def test_nothing_happens_when_it_is_off(tmp_path):
    for evaluate, every in ((None, 3), (value, 0)):
        _, evaluations, metrics = run(tmp_path, evaluate, every)
        evaluations.settle(before=5)
        evaluations.close()
        metrics.close()
        assert found(tmp_path) == {}
    with pytest.raises(ValueError, match=r"config\.evaluation\.every is -1"):
        PeriodicEvaluation(value, -1, metrics, tmp_path)


def test_late_rows_do_not_break_the_order_of_steps(tmp_path):
    with MetricsWriter(tmp_path) as metrics:
        metrics.write(3, {"loss": 1.0})
        metrics.write_late(2, {"heldout_sum": 1.0})
        with pytest.raises(ValueError, match="metrics of step 2 come after"):
            metrics.write(2, {"loss": 1.0})
        metrics.write(4, {"loss": 1.0})
    with MetricsWriter(tmp_path, resume_step=3) as metrics:
        metrics.write(3, {"loss": 2.0})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 2, 3]
