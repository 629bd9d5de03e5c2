"""``--mode=evaluate --benchmarks=...``: from flags and config to results, report and a table on the terminal."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rcjax.evaluation.benchmark_report import write_benchmark_report
from rcjax.evaluation.benchmark_run import REPORT_FILE, evaluate_benchmarks, read_results, read_rows
from rcjax.evaluation.generation import GenerationSettings, SettingsError
from rcjax.evaluation.run_comparison import compare_runs
from rcjax.evaluation.scoring import RESULTS_FILE
from rcjax.progress import say
from rcjax.workdir import write_json

MAX_NEW_TOKENS = 1024  # as the reference


def evaluate(
    config: ConfigDict,
    *,
    benchmarks: Sequence[str],
    data: Sequence[str],
    settings: Mapping[str, Any],
    output: str,
    source: str | None,
    workdir: str | None,
    compare: str | None,
) -> None:
    """Evaluates the model ``source`` (Hugging Face form) or the newest checkpoint of ``workdir``.

    Args:
      config: for the mesh and for the files of benchmarks.
      benchmarks: names.
      data: files by flag, see ``data_files``.
      settings: of ``GenerationSettings``.
      output: directory.
      compare: directory of another evaluation.
    """
    from rcjax.pipeline import versions

    checked = GenerationSettings(**settings)
    files = data_files(benchmarks, data, config.evaluation.get("data", {}))
    other = read_results(compare) if compare else None  # before hours go by
    about = {
        "command": "python launch.py " + " ".join(shlex.quote(word) for word in sys.argv[1:]),
        "versions": versions(),
    }
    model = _workdir_model(config, workdir) if source is None else _open(source, config)
    results = evaluate_benchmarks(model, files, checked, output, about=about)
    _finish(Path(output), results, compare, other)


def compare(output: str, other: str) -> None:
    """Compares two finished evaluations and writes the first one's report anew."""
    _finish(Path(output), read_results(output), other, read_results(other))


def data_files(benchmarks: Sequence[str], given: Sequence[str], configured: Mapping[str, str]) -> dict[str, str | None]:
    """The file of each benchmark, None where the Hub is asked.

    Args:
      given: ``BENCHMARK=FILE``, or the file alone where there is one benchmark.
      configured: ``config.evaluation.data``; ``humaneval_plus`` is the file of ``humaneval+``.

    Raises:
      SettingsError: a file for a benchmark that is not evaluated, or for none of several.
    """
    files: dict[str, str | None] = {
        name: configured.get(name.replace("+", "_plus").replace("-", "_")) or None for name in benchmarks
    }
    for entry in given:
        name, equals, path = entry.partition("=")
        if not equals and len(files) == 1:
            name, path = next(iter(files)), entry
        if name not in files:
            raise SettingsError(
                f"--data={entry} names no benchmark of --benchmarks={','.join(benchmarks)}; give BENCHMARK=FILE"
            )
        files[name] = path
    return files


def _open(source: str, config: ConfigDict):
    import jax

    from rcjax.evaluation.model import open_model
    from rcjax.layout import mesh_of

    return open_model(source, mesh_of(config) if jax.device_count() > 1 else None)


def _workdir_model(config: ConfigDict, workdir: str):
    from rcjax.evaluation.model import make_model
    from rcjax.pipeline import Pipeline
    from rcjax.workdir import open_workdir

    with open_workdir(workdir, config) as place:
        pipeline = Pipeline(config, place)
        params, step = pipeline.trained_params()
        return make_model(workdir, pipeline.model_config, params, pipeline.tokenizer, step)


def _finish(output: Path, results: dict[str, Any], compare: str | None, other: Mapping[str, Any] | None) -> None:
    if other is not None:
        results["comparison"] = compare_runs(results, other, compare)
        write_json(output / RESULTS_FILE, results)
    write_benchmark_report(output / REPORT_FILE, results, read_rows(output))
    for name, found in results["benchmarks"].items():
        figures = ", ".join(
            f"{tests} {found[tests]['pass@1']:.1%} [{low:.1%}, {high:.1%}]"
            for tests, (low, high) in found["intervals"].items()
        )
        cut = f"; cut at max_new_tokens: {len(found['unfinished'])}" if found["unfinished"] else ""
        say(f"{name}: pass@1 {figures} on {found['num_tasks']} tasks{cut}")
        for one in found.get("rounds", ())[1:]:
            rates = ", ".join(f"{tests} {one[tests]['pass@1']:.1%}" for tests in ("base", "plus") if tests in one)
            say(f"{name}, round {one['round']}: {rates}, {one['tokens_per_problem']:.0f} tokens a problem")
    for name, tests in results.get("comparison", {"benchmarks": {}})["benchmarks"].items():
        for kind, found in tests.items():
            low, high = found["interval"]
            chance = "" if found["p_value"] is None else f", McNemar p = {found['p_value']:.3g}"
            say(
                f"{name} {kind} against {results['comparison']['with']}: {100 * found['difference']:+.1f} points "
                f"[{100 * low:+.1f}, {100 * high:+.1f}]{chance}"
            )
    say(f"report: {os.path.relpath(output / REPORT_FILE)}")
