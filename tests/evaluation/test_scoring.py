"""Verdicts: evalplus's on what it published, and none that a program can give itself."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from data_gen.mutations import mutants, normalize
from rcjax.evaluation import evalplus, scoring
from rcjax.evaluation.benchmarks import BenchmarkError, load_benchmark
from rcjax.evaluation.expected import Expected, expected_outputs
from rcjax.evaluation.python_sets import with_find_zero_fixed
from rcjax.evaluation.samples import CodeSample, SampleSet, read_samples
from rcjax.evaluation.scoring import SampleVerdict, score_samples
from tests.conftest import ROOT, shared_directory
from tests.evaluation.small_benchmarks import HUMANEVAL, HUMANEVAL_PLUS, MBPP, MBPP_PLUS, write_lines

SHARED = shared_directory() / "data"
STRIDE = 16  # of the published samples, every so many; benchmarks/evalplus.py takes all


@contextlib.contextmanager
def no_progress(*_, **__):
    class Bar:
        def advance(self, *_):
            pass

    yield Bar()


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Expected outputs of this module's files lie aside from the user's."""
    before = os.environ.get("RCJAX_CACHE")
    os.environ["RCJAX_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield Path(os.environ["RCJAX_CACHE"])
    if before is None:
        del os.environ["RCJAX_CACHE"]
    else:
        os.environ["RCJAX_CACHE"] = before


@pytest.fixture(scope="module")
def humaneval(tmp_path_factory):
    return load_benchmark("humaneval+", write_lines(tmp_path_factory.mktemp("h") / "h.jsonl", HUMANEVAL_PLUS))


@pytest.fixture(scope="module")
def mbpp(tmp_path_factory):
    return load_benchmark("mbpp+", write_lines(tmp_path_factory.mktemp("m") / "m.jsonl", MBPP_PLUS))


def verdicts(benchmark, task_id, *solutions) -> list[SampleVerdict]:
    samples = [CodeSample(task_id, solution) for solution in solutions]
    return score_samples(benchmark, samples, progress=no_progress).verdicts[task_id]


def statuses(benchmark, task_id, *solutions) -> list[tuple[str, str]]:
    return [(verdict.base, verdict.plus) for verdict in verdicts(benchmark, task_id, *solutions)]


# ---- what is right and what is wrong


def test_canonical_programs_pass(humaneval, mbpp):
    for benchmark in (with_find_zero_fixed(humaneval), mbpp):
        samples = [CodeSample(task.id, task.canonical) for task in benchmark.tasks.values()]
        score = score_samples(benchmark, samples, progress=no_progress)
        assert score.pass_at(1, "base") == score.pass_at(1, "plus") == 1.0, score.verdicts
        assert all(verdict.failure == "" for found in score.verdicts.values() for verdict in found)


def test_find_zero_fails_as_in_the_release_and_says_so(humaneval):
    task = humaneval.tasks["HumanEval/32"]
    wrong = "def find_zero(xs):\n    return 7.0\n"
    (released, missed) = verdicts(humaneval, task.id, task.canonical, wrong)
    assert (released.base, released.plus) == ("fail", "fail")
    assert "evalplus_rules" in released.failure
    assert "evalplus_rules" not in missed.failure
    assert statuses(with_find_zero_fixed(humaneval), task.id, task.canonical, wrong) == [("pass",) * 2, ("fail",) * 2]


def test_base_and_plus_are_apart(humaneval):
    found = statuses(
        humaneval,
        "HumanEval/0",
        "def double(x):\n    return x * 2 if x > 0 else 7\n",
        "def double(x):\n    return 2 * x if x <= 0 or x > 9 else 0\n",
        "def double(x):\n    return x + x\n",
    )
    assert found == [("pass", "fail"), ("fail", "pass"), ("pass", "pass")]


def test_mutants_fail(humaneval, mbpp):
    """Mutants whose fault shows on the tasks' inputs, which an exhaustive run in this process decides."""
    for benchmark, task_id in ((humaneval, "HumanEval/0"), (mbpp, "Mbpp/2")):
        task = benchmark.tasks[task_id]
        inputs = [*task.data["base_input"], *task.data["plus_input"]]
        right = _outputs(task.canonical, task.entry_point, inputs)
        faulty = []
        for mutant in mutants(normalize(task.canonical), random.Random(0), limit=12):
            if _outputs(mutant.code, task.entry_point, inputs) != right:
                faulty.append(mutant.code)
        assert len(faulty) >= 2
        score = score_samples(benchmark, [CodeSample(task_id, code) for code in faulty], progress=no_progress)
        assert score.counts("plus")[task_id] == (len(faulty), 0)


def _outputs(code, name, inputs):
    namespace: dict = {}
    try:
        exec(code, namespace)
        outputs = [namespace[name](*arguments) for arguments in inputs]
        return [set(out) for out in outputs] if name == "similar_elements" else outputs
    except Exception as error:
        return repr(error)


@pytest.mark.parametrize(
    ("task_id", "body", "right"),
    [
        ("HumanEval/4", "[x / 2 + 1e-9 for x in xs]", True),  # floats are compared to 1e-6 where the task says 0
        ("HumanEval/4", "[x / 2 + 1e-5 for x in xs]", False),
        ("HumanEval/4", "tuple(x / 2 for x in xs)", False),
        ("HumanEval/4", "[__import__('fractions').Fraction(x) / 2 for x in xs]", True),
        ("HumanEval/4", "(x / 2 for x in xs)", False),
        ("HumanEval/4", "__import__('numpy').array(xs) / 2", False),  # [] == array([]) has no truth value
        ("HumanEval/4", "[__import__('numpy').float64(x) / 2 for x in xs]", True),
    ],
)
def test_rules_of_comparison(humaneval, task_id, body, right):
    found = statuses(humaneval, task_id, f"def halves(xs):\n    return {body}\n")
    assert found == [("pass", "pass") if right else ("fail", "fail")]


def test_special_oracles_of_mbpp(mbpp):
    assert statuses(
        mbpp,
        "Mbpp/2",
        "def similar_elements(a, b):\n    return [x for x in b if x in a]\n",
        "def similar_elements(a, b):\n    return (x for x in b if x in a)\n",
        "def similar_elements(a, b):\n    return [[x] for x in b if x in a]\n",
    ) == [("pass", "pass"), ("pass", "pass"), ("fail", "fail")]
    assert statuses(
        mbpp,
        "Mbpp/737",
        "def check_str(s):\n    return s[:1] in set('aeiou')\n",
        "def check_str(s):\n    return None if s[:1] not in set('aeiou') else 'yes'\n",
        "def check_str(s):\n    return 'yes'\n",
    ) == [("pass", "pass"), ("pass", "pass"), ("fail", "fail")]


def test_an_input_that_a_program_changes_is_its_own(humaneval):
    code = "def halves(xs):\n    return [xs.pop(0) / 2 for _ in range(len(xs))]\n"
    assert statuses(humaneval, "HumanEval/4", code, code + "\n") == [("pass", "pass")] * 2


def test_state_lives_through_the_inputs_of_a_run_and_not_beyond(humaneval):
    code = "seen = []\ndef double(x):\n    seen.append(x)\n    return 2 * x if len(seen) < 3 else 0\n"
    assert statuses(humaneval, "HumanEval/0", code, code + "#") == [("pass", "fail")] * 2


def test_what_evalplus_takes_away_is_gone(humaneval):
    found = verdicts(
        humaneval,
        "HumanEval/0",
        "import os\ndef double(x):\n    os.getcwd()\n    return 2 * x\n",
        "def double(x):\n    open('/etc/passwd')\n    return 2 * x\n",
        "def double(x):\n    return int(input())\n",
        "def double(x):\n    print(x)\n    return 2 * x\n",
        "if __name__ == '__main__':\n    raise ValueError\ndef double(x):\n    return 2 * x\n",
        "import numpy as np\ndef double(x):\n    return int(np.multiply(x, 2, dtype=object))\n",
    )
    assert [verdict.base for verdict in found] == ["fail", "fail", "fail", "pass", "pass", "pass"]
    assert "NoneType" in found[0].failure
    assert "OSError" in found[2].failure


def test_recursion_is_as_deep_as_in_evalplus(humaneval):
    """967 frames: measured in `python -m evalplus.evaluate` of release 0.3.1 on Python 3.11."""
    code = (
        "def down(n):\n    return 0 if n == 1 else down(n - 1)\ndef double(x):\n    down({})\n    return 2 * x\n".format
    )
    if sys.version_info[:2] == (3, 11):
        assert statuses(humaneval, "HumanEval/0", code(967), code(968)) == [("pass", "pass"), ("fail", "fail")]


# ---- time


def test_time_limits(humaneval, monkeypatch):
    monkeypatch.setattr(evalplus, "MOST_SECONDS", 2.0)  # 60 s in evalplus
    monkeypatch.setattr(evalplus, "MORE_SECONDS", 0.5)
    slow, endless, module, swallows = verdicts(
        humaneval,
        "HumanEval/0",
        "import time\ndef double(x):\n    time.sleep(0.3)\n    return 2 * x\n",
        "def double(x):\n    while True:\n        pass\n",
        "while True:\n    pass\n",
        "def double(x):\n    while True:\n        try:\n            while True:\n                pass\n"
        "        except Exception:\n            pass\n",
    )
    assert (slow.base, slow.plus) == ("pass", "pass")
    assert (endless.base, endless.plus) == ("fail", "fail")  # evalplus's word for an input whose time is up
    assert endless.failure == "double(1): TimeoutError: no result within 1 s\n"
    assert (module.base, module.plus) == (swallows.base, swallows.plus) == ("timeout", "timeout")
    assert "no end within 2.5 s" in module.failure


def test_limits_follow_the_canonical_program(tmp_path):
    slow = {
        **HUMANEVAL_PLUS[0],
        "canonical_solution": "    import time\n    time.sleep(0.4 * (x == 2))\n    return 2 * x\n",
    }
    benchmark = load_benchmark("humaneval+", write_lines(tmp_path / "slow.jsonl", [slow]))
    code = "import time\ndef double(x):\n    time.sleep({} * (x == {}))\n    return 2 * x\n".format
    assert statuses(benchmark, "HumanEval/0", code(1.3, 2), code(1.3, 1)) == [("pass", "pass"), ("fail", "pass")]
    assert expected_outputs(benchmark).suite("HumanEval/0", "base").seconds[1] > 0.4


# ---- programs that would rather not be judged

FORGERIES = {
    "leaves": "import os\nos._exit(0)\n",
    "leaves in the call": "import os\ndef double(x):\n    os._exit(0)\n",
    "exits": "raise SystemExit(0)\n",
    "exits in the call": "def double(x):\n    raise SystemExit(0)\n",
    "prints": "print('pass')\ndef double(x):\n    print('pass')\n",
    "dies": "import ctypes\ndef double(x):\n    ctypes.string_at(0)\n",
    "writes to descriptors": """
import os, struct
def double(x):
    for kind in range(9):
        for fd in range(64):
            try:
                os.write(fd, struct.pack('<BI', kind, 0))
                os.write(fd, b'[true, 0, ""]')
            except OSError:
                pass
    os._exit(0)
""",
    "claims comparisons that nobody asked for": """
import os, struct
def double(x):
    for _ in range(9):
        os.write(4, struct.pack('<BI', 2, 13) + b'[true, 0, ""]')
    os._exit(0)
""",
    "looks for what is expected": """
import gc, sys
def double(x):
    wanted = {2: 4}
    found = [o for o in gc.get_objects() if type(o) is list and o and type(o[0]) is bytes]
    frame = sys._getframe()
    while frame:
        for value in frame.f_locals.values():
            if hasattr(value, 'expected') or hasattr(value, 'contents'):
                return 2 * x
        frame = frame.f_back
    return 2 * x if found else None
""",
    "reads the cache": """
import os
def double(x):
    for place in ('CACHE', '/root', '/home', '/var', '/tmp'):
        for directory, _, files in os.walk(place):
            if any(name.endswith('.outputs') for name in files):
                return 2 * x
    return None
""",
    "patches the harness": """
import pickle, io, sys, builtins, json
builtins.isinstance = lambda *_: True
builtins.type = lambda *_: None
pickle.dumps = lambda *_: b''
json.dumps = lambda *_: 'true'
def double(x):
    frame = sys._getframe()
    while frame:
        me = frame.f_locals.get('self')
        if me is not None and hasattr(me, 'judge'):
            me.judge = lambda *_: (True, 0)
            me.encode = lambda *_: b'\\x80\\x05N.'
        frame = frame.f_back
    return 5
""",
    "a pickle with a hook": """
class Sly:
    def __reduce__(self):
        return (eval, ('4',))
def double(x):
    return [Sly()]
""",
    "a number of its own": "class N(int):\n    pass\ndef double(x):\n    return N(7)\n",
}


@pytest.mark.parametrize("trick", FORGERIES)
def test_forged_verdicts(humaneval, cache, trick, monkeypatch):
    monkeypatch.setattr(evalplus, "MOST_SECONDS", 1.0)
    (found,) = verdicts(humaneval, "HumanEval/0", FORGERIES[trick].replace("CACHE", str(cache)))
    assert "pass" not in (found.base, found.plus), found


def test_an_object_that_calls_itself_equal_passes_as_in_evalplus_and_is_told(humaneval):
    sly = "class Sly:\n    def __eq__(self, other):\n        return True\ndef double(x):\n    return Sly()\n"
    plain = "class N(int):\n    pass\ndef double(x):\n    return N(2 * x)\n"
    score = score_samples(humaneval, [CodeSample("HumanEval/0", sly)], progress=no_progress)
    assert score.pass_at(1, "plus") == 1.0
    assert "says itself" in score.to_json()["notes"]["HumanEval/0"]
    assert statuses(humaneval, "HumanEval/0", plain) == [("pass", "pass")]


def test_a_bad_program_leaves_the_next_one_alone(humaneval):
    good = "def double(x):\n    return 2 * x\n"
    bad = [code for name, code in FORGERIES.items() if name in ("leaves", "dies", "patches the harness")]
    found = score_samples(
        humaneval, [CodeSample("HumanEval/0", code) for code in [*bad, good]], workers=1, progress=no_progress
    )
    assert [verdict.passed for verdict in found.verdicts["HumanEval/0"]] == [False] * len(bad) + [True]


# ---- the cache of expected outputs


def test_expected_outputs_are_computed_once_and_checked(humaneval, cache, monkeypatch):
    first = expected_outputs(humaneval, progress=no_progress)
    assert first.path.is_relative_to(cache)
    assert first.path.stat().st_mode & 0o077 == 0
    monkeypatch.setattr("rcjax.evaluation.expected._compute", None)
    assert expected_outputs(humaneval).frames("HumanEval/0", "base") == first.frames("HumanEval/0", "base")
    data = bytearray(first.path.read_bytes())
    data[-3] ^= 1
    altered = first.path.with_name("altered.outputs")
    altered.write_bytes(data)
    read = Expected(altered)
    with pytest.raises(BenchmarkError, match="altered"):
        [read.content(task_id, suite, 0) for task_id in humaneval.tasks for suite in ("base", "plus")]
    altered.write_bytes(data[:-1])
    with pytest.raises(ValueError, match="cut short"):
        Expected(altered)


def test_a_canonical_program_that_fails_is_the_datas_fault(tmp_path):
    broken = {**HUMANEVAL_PLUS[0], "canonical_solution": "    return 1 // x\n"}
    benchmark = load_benchmark("humaneval+", write_lines(tmp_path / "b.jsonl", [broken]))
    with pytest.raises(BenchmarkError, match=r"HumanEval/0 fails on plus input 1 of 3 \(ZeroDivisionError\)"):
        expected_outputs(benchmark, progress=no_progress)


# ---- the score


def test_original_tests_are_run_behind_the_program(tmp_path):
    humaneval = load_benchmark("humaneval", write_lines(tmp_path / "h.jsonl", HUMANEVAL))
    mbpp = load_benchmark("mbpp", write_lines(tmp_path / "m.jsonl", MBPP))
    for benchmark in (humaneval, mbpp):
        (task,) = benchmark.tasks.values()
        right, wrong = verdicts(benchmark, task.id, task.canonical, task.canonical.replace("2 *", "3 *"))
        assert right == SampleVerdict("pass")
        assert right.plus is None
        assert wrong.base == "fail"
        assert "AssertionError" in wrong.failure


def test_pass_at_k_and_results(humaneval, tmp_path):
    right, wrong = "def double(x):\n    return 2 * x\n", "def double(x):\n    return 0\n"
    samples = SampleSet(
        tuple(CodeSample("HumanEval/0", code) for code in (right, wrong, wrong, right)),
        unknown=("HumanEval/7",),
        missing=("HumanEval/4", "HumanEval/32"),
    )
    score = score_samples(humaneval, samples, progress=no_progress)
    assert score.ks == (1, 4)
    assert score.pass_at(1) == 0.5
    assert score.pass_at(2) == pytest.approx(1 - 1 / 6)
    path = score.save(tmp_path / "out")
    results = json.loads(path.read_text())
    assert results["benchmark"] == "humaneval+"
    assert results["data_version"] == humaneval.version
    assert results["num_tasks"] == 1
    assert results["partial"] is True
    assert results["base"] == {"pass@1": 0.5, "pass@4": 1.0} == results["plus"]
    assert results["missing"] == ["HumanEval/4", "HumanEval/32"]
    assert results["unknown"] == ["HumanEval/7"]
    assert [found["base"] for found in results["tasks"]["HumanEval/0"]] == ["pass", "fail", "fail", "pass"]
    assert set(results["tasks"]["HumanEval/0"][0]) == {"base", "plus", "failure"}
    assert results["tasks"]["HumanEval/0"][1]["failure"] == "double(1): got 0, expected 2\n"


def test_tasks_that_a_scorer_skips_are_in_no_figure(humaneval, monkeypatch):
    def skipping(benchmark, samples, done, workers):
        for index, sample in enumerate(samples):
            skip = sample.task_id == "HumanEval/4"
            done(index, SampleVerdict("skipped", failure="no compiler") if skip else SampleVerdict("pass", "pass"))

    monkeypatch.setitem(scoring.SCORERS, "evalplus", skipping)
    score = score_samples(humaneval, [CodeSample(task_id, "") for task_id in humaneval.tasks], progress=no_progress)
    assert score.pass_at(1) == 1.0
    assert len(score.verdicts) == 2
    assert score.to_json()["skipped"] == {"HumanEval/4": "no compiler"}
    assert not score.partial


# ---- the command


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "launch.py"), "--mode=score", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, env=os.environ)


def test_the_command(tmp_path):
    data = write_lines(tmp_path / "data.jsonl.gz", HUMANEVAL_PLUS, packed=True)
    rows = [{"task_id": row["task_id"], "completion": row["canonical_solution"]} for row in HUMANEVAL_PLUS]
    rows[1]["completion"] = ""
    samples = write_lines(tmp_path / "samples.jsonl.gz", rows, packed=True)
    common = ("--benchmark=humaneval+", f"--data={data}", f"--output={tmp_path / 'out'}")
    run = launch(*common, f"--samples={samples}", "--evalplus_rules=fixed")
    assert run.returncode == 0, run.stderr
    assert "humaneval+ base: pass@1 66.7%   (2 of 3 samples)" in run.stdout
    assert "none of the released versions" in run.stdout
    assert "1 tasks have empty samples" in run.stdout
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["plus"] == {"pass@1": pytest.approx(2 / 3)}
    assert results["empty"] == ["HumanEval/4"]
    some = write_lines(tmp_path / "some.jsonl", rows[:1])
    run = launch(*common, f"--samples={some}")
    assert run.returncode == 2
    assert "HumanEval/4, HumanEval/32" in run.stderr
    assert "--allow_partial" in run.stderr
    run = launch(*common, f"--samples={some}", "--allow-partial")
    assert run.returncode == 0
    assert "(partial: 1 of 3 tasks)" in run.stdout


def test_flags_that_are_missing_or_in_the_way(tmp_path):
    assert "--benchmark" in launch().stderr
    assert "--samples" in launch("--benchmark=mbpp+").stderr
    run = launch("--benchmark=mbpp+", f"--samples={tmp_path / 'none'}")
    assert run.returncode == 2
    assert "MbppPlus.jsonl.gz" in run.stderr
    assert "Traceback" not in run.stderr


# ---- evalplus's own verdicts


@pytest.mark.parametrize(
    ("name", "data", "stem"),
    [
        ("humaneval+", "humaneval_plus/HumanEvalPlus.jsonl.gz", "humaneval"),
        ("mbpp+", "mbpp_plus/MbppPlus.jsonl.gz", "mbpp"),
    ],
)
def test_published_samples(tmp_path, name, data, stem):
    """Statuses that evalplus's authors' own run gave. The data has changed since in a few tasks."""
    published = SHARED / "published_samples" / f"evalplus-starcoder2-15b-instruct-v0.1-{stem}"
    if not published.with_name(published.name + ".jsonl").exists():
        pytest.skip(f"{published}.jsonl is not at hand; set RCJAX_SHARED")
    whole = load_benchmark(name, SHARED / data)
    later = {"HumanEval/21", "Mbpp/14", "Mbpp/276", "Mbpp/312"}  # evalplus 0.3.1 differs from the file there, too
    chosen = [task_id for task_id in list(whole.tasks)[::STRIDE] if task_id not in later]
    rows = [json.loads(line) for line in (published.parent / f"{published.name}.jsonl").read_text().splitlines()]
    samples = write_lines(tmp_path / "some.jsonl", [row for row in rows if row["task_id"] in chosen])
    import dataclasses

    some = dataclasses.replace(whole, tasks={task_id: whole.tasks[task_id] for task_id in chosen})
    score = score_samples(some, read_samples(samples, some), progress=no_progress)
    theirs = json.loads((published.parent / f"{published.name}_eval_results.json").read_text())["eval"]
    assert score.verdicts.keys() == set(chosen)
    for task_id, (verdict,) in score.verdicts.items():
        (row,) = theirs[task_id]
        assert (verdict.base, verdict.plus) == (row["base_status"], row["plus_status"]), (task_id, verdict)


# ---- runs in parts


def test_programs_find_the_same_with_and_without_numpy_loaded(humaneval, monkeypatch):
    codes = [
        "def double(x):\n    return 2 * x\n",
        "import random\ndef double(x):\n    random.seed(x)\n    return 2 * x + (random.random() > 2)\n",
        "import sys\ndef double(x):\n    return 2 * x if 'shutil' in sys.__dict__ else 3\n",
        "def double(x):\n    open('left', 'w')\n    return 2 * x\n",
        "class Two(int):\n    pass\ndef double(x):\n    return Two(2 * x)\n",
    ]
    found = {}
    for plain in (True, False):
        monkeypatch.setattr(evalplus, "keeps_to_plain_modules", lambda source, plain=plain: plain)
        found[plain] = verdicts(humaneval, "HumanEval/0", *codes)
    assert found[True] == found[False]
    assert [verdict.base for verdict in found[True]] == ["pass", "pass", "fail", "fail", "pass"]


def test_runs_in_parts_come_to_the_same(humaneval, monkeypatch):
    """With parts of one input each, the verdicts are those of whole runs: the first wrong output decides."""
    codes = [
        "def double(x):\n    return 2 * x\n",
        "def double(x):\n    return 2 * x if x != -3 else 1 / 0\n",
        "def double(x):\n    return 2 * x if x == 1000 else 0\n",
        "def double(x):\n    while x == 1000:\n        x = 1000\n    return 2 * x\n",
        "seen = []\ndef double(x):\n    seen.append(x)\n    return 2 * x if len(seen) < 3 else 0\n",
    ]
    floats = ["def halves(xs):\n    return [x / 2 + 1e-9 for x in xs]\n"]
    whole = verdicts(humaneval, "HumanEval/0", *codes), verdicts(humaneval, "HumanEval/4", *floats)
    monkeypatch.setattr(evalplus, "PART_SECONDS", 1e-9)
    assert len(evalplus._parts(0, "plus", [0.1, 0.1, 0.1], True)) == 3
    assert len(evalplus._parts(0, "plus", [0.1, 0.1, 0.1], False)) == 1
    assert (verdicts(humaneval, "HumanEval/0", *codes), verdicts(humaneval, "HumanEval/4", *floats)) == whole
    monkeypatch.setattr(evalplus, "MOST_SECONDS", 0.001)
    monkeypatch.setattr(evalplus, "MORE_SECONDS", 0.45)
    slow = "def double(x):\n    for _ in range({}):\n        pass\n    return 2 * x\n"
    (found,) = verdicts(humaneval, "HumanEval/0", slow.format(12_000_000))
    assert found.plus == "timeout"  # three parts of 0.2 s and more make one run of more than 0.45 s
