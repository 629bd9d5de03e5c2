"""Metrics on disk: valid JSON always, nothing lost to a kill, a resume continues where the checkpoint was."""

import json
import math
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rcjax.train.metrics import METRICS_FILE, MetricsError, MetricsWriter, read_metrics, wandb_run


def strict(text: str):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def scalars(workdir, tag):
    events = EventAccumulator(str(workdir))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_rows_come_back_as_written(tmp_path):
    with MetricsWriter(tmp_path, None) as metrics:
        metrics.write(0, {"loss": 2.5, "computed_tokens": 10**12, "lr": np.float32(0.5), "rows": np.int64(3)})
        metrics.write(10, {"loss": 1.25})
    rows = strict((tmp_path / METRICS_FILE).read_text())
    assert rows == [
        {"step": 0, "loss": 2.5, "computed_tokens": 10**12, "lr": 0.5, "rows": 3},
        {"step": 10, "loss": 1.25},
    ]
    assert read_metrics(tmp_path) == rows == read_metrics(tmp_path / METRICS_FILE)


def test_values_that_are_not_finite_are_null_in_the_file_and_themselves_in_tensorboard(tmp_path):
    with MetricsWriter(tmp_path, None) as metrics:
        metrics.write(1, {"loss": math.nan, "kl": math.inf, "ce": np.float32(-np.inf), "big": 1e300})
    assert strict((tmp_path / METRICS_FILE).read_text()) == [
        {"step": 1, "loss": None, "kl": None, "ce": None, "big": 1e300}
    ]
    assert math.isnan(scalars(tmp_path, "loss")[0][1])
    assert scalars(tmp_path, "kl") == [(1, math.inf)]
    assert scalars(tmp_path, "ce") == [(1, -math.inf)]
    assert math.isfinite(scalars(tmp_path, "big")[0][1])


def test_tensorboard_reads_every_step_and_tag(tmp_path):
    with MetricsWriter(tmp_path, None) as metrics:
        for step in range(25):
            metrics.write(step, {"loss": 1 / (step + 1), "mask_rate": step / 25})
    assert scalars(tmp_path, "loss") == [(step, pytest.approx(1 / (step + 1))) for step in range(25)]
    assert len(scalars(tmp_path, "mask_rate")) == 25


def test_resume_drops_what_came_after_the_checkpoint(tmp_path):
    with MetricsWriter(tmp_path, None) as metrics:
        for step in range(0, 100, 10):
            metrics.write(step, {"loss": float(step)})
    with MetricsWriter(tmp_path, 40) as metrics:
        for step in range(50, 80, 10):
            metrics.write(step, {"loss": -float(step)})
    expected = [(step, float(step)) for step in range(0, 50, 10)] + [(step, -float(step)) for step in range(50, 80, 10)]
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == expected
    assert scalars(tmp_path, "loss") == expected


def test_starting_anew_drops_earlier_metrics(tmp_path):
    for sign in (1, -1):
        with MetricsWriter(tmp_path, None) as metrics:
            metrics.write(0, {"loss": 1.0 * sign})
            metrics.write(5, {"loss": 5.0 * sign})
    assert [row["loss"] for row in read_metrics(tmp_path)] == [-1.0, -5.0]
    assert scalars(tmp_path, "loss") == [(0, -1.0), (5, -5.0)]


@pytest.mark.parametrize("tail", ['{"step": 30, "lo', '{"step": 30, "loss": 1.5', "{", '{"step": 30, "loss": "\\ud8'])
def test_a_last_line_cut_short_is_dropped(tmp_path, tail):
    with MetricsWriter(tmp_path, None) as metrics:
        metrics.write(10, {"loss": 1.0})
        metrics.write(20, {"loss": 2.0})
    with open(tmp_path / METRICS_FILE, "a") as file:
        file.write(tail)
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 20]
    with MetricsWriter(tmp_path, 50) as metrics:
        metrics.write(60, {"loss": 3.0})
    assert [row["step"] for row in strict((tmp_path / METRICS_FILE).read_text())] == [10, 20, 60]


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    (tmp_path / METRICS_FILE).write_text('{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n')
    with pytest.raises(MetricsError, match=r"metrics\.jsonl line 2 .* delete that line"):
        read_metrics(tmp_path)
    with pytest.raises(MetricsError, match="line 2"):
        MetricsWriter(tmp_path, 3)


def test_no_file_has_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []


def test_a_killed_process_leaves_every_line_it_wrote(tmp_path):
    script = (
        "import sys; from rcjax.train.metrics import MetricsWriter\n"
        "metrics = MetricsWriter(sys.argv[1], None)\n"
        "for step in range(10**9):\n"
        "    metrics.write(step, {'loss': step / 7})\n"
        "    print(step, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    reported = -1
    for line in process.stdout:
        reported = int(line)
        if reported >= 200:
            os.kill(process.pid, signal.SIGKILL)
            break
    process.stdout.close()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    rows = read_metrics(tmp_path)
    assert len(rows) > reported
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert len(scalars(tmp_path, "loss")) >= reported
    with MetricsWriter(tmp_path, 150) as metrics:
        metrics.write(151, {"loss": 0.0})
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(152))
    assert [step for step, _ in scalars(tmp_path, "loss")] == list(range(152))


def test_misuse_is_refused(tmp_path):
    with MetricsWriter(tmp_path, None) as metrics:
        metrics.write(5, {"loss": 1.0})
        metrics.write(5, {"pass@1": 0.5})
        with pytest.raises(ValueError, match="step 4 come after"):
            metrics.write(4, {"loss": 1.0})
        with pytest.raises(ValueError, match="argument of its own"):
            metrics.write(6, {"step": 6})
        for value in ("1", None, True):
            with pytest.raises(TypeError, match="metric 'loss'"):
                metrics.write(6, {"loss": value})
    assert [row["step"] for row in read_metrics(tmp_path)] == [5, 5]


def test_lines_that_find_no_room_wait_for_it(tmp_path, capsys):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MetricsWriter(tmp_path, None) as metrics:
        for step in range(10):
            metrics.write(step, {"loss": step / 7})
        size = (tmp_path / METRICS_FILE).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, limit[1]))  # a line and a half
        try:
            for step in range(10, 20):
                metrics.write(step, {"loss": step / 7})
            assert len((tmp_path / METRICS_FILE).read_bytes().splitlines()) == 11, "no half line"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        metrics.write(20, {"loss": 0.0})
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(21))
    assert [step for step, _ in scalars(tmp_path, "loss")] == list(range(21))
    assert capsys.readouterr().out.count("metrics wait for room") == 2  # a line for each file


def test_weights_and_biases_gets_the_same_numbers(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is optional: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb_run("rcjax", tmp_path, {"seed": 1})
    with MetricsWriter(tmp_path, None, wandb=run) as metrics:
        metrics.write(3, {"loss": 0.25})
        assert run.summary["loss"] == 0.25
        assert run.summary["step"] == 3
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))


def test_without_the_package_weights_and_biases_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MetricsError, match=r"config\.wandb is 'p', but wandb is not installed: pip install wandb"):
        wandb_run("p", tmp_path, {})
    assert wandb_run("", tmp_path, {}) is None
