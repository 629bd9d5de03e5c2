"""Benchmarks of other languages and forms: right programs pass, wrong ones and those that leave early do not."""

import base64
import json
import pickle
import zlib

import pytest

from data_gen import languages
from data_gen.languages import language_of
from rcjax.evaluation import programs
from rcjax.evaluation.benchmarks import BenchmarkError, load_benchmark
from rcjax.evaluation.samples import CodeSample
from rcjax.evaluation.scoring import score_samples
from tests.conftest import shared_directory

# Bodies of three tasks of MultiPL-E, written by hand; what stands behind @ makes the same program wrong.
STRLEN, ADD, FIB = "HumanEval_23_strlen", "HumanEval_53_add", "HumanEval_55_fib"
SOLVED = {
    "cpp": {
        STRLEN: "    return string.size()@ + 1@;",
        ADD: "    return x + y@ * 2@;",
        FIB: "    long a = 0, b = 1;\n    while (n-- > 0) { long c = a + b; a = b; b = c; }\n    return a@ - 1@;",
    },
    "java": {
        STRLEN: "        return string.length()@ + 1@;",
        ADD: "        return x + y@ * 2@;",
        FIB: "        long a = 0, b = 1;\n        for (; n > 0; n--) { long c = a + b; a = b; b = c; }\n"
        "        return a@ - 1@;",
    },
    "js": {
        STRLEN: "  return string.length@ + 1@;\n}\n",
        ADD: "  return x + y@ * 2@;\n}\n",
        FIB: "  let [a, b] = [0, 1];\n  while (n-- > 0) [a, b] = [b, a + b];\n  return a@ - 1@;\n}\n",
    },
    "ts": {
        STRLEN: "  return string.length@ + 1@;\n}\n",
        ADD: "  return x + y@ * 2@;\n}\n",
        FIB: "  let [a, b] = [0, 1];\n  while (n-- > 0) [a, b] = [b, a + b];\n  return a@ - 1@;\n}\n",
    },
    "php": {
        STRLEN: "    return count(str_split($string)) - (int)($string === '')@ + 1@;\n}\n",
        ADD: "    return $x + $y@ * 2@;\n}\n",
        FIB: "    [$a, $b] = [0, 1];\n    while ($n-- > 0) [$a, $b] = [$b, $a + $b];\n    return $a@ - 1@;\n}\n",
    },
    "sh": {
        STRLEN: '    echo "$((${#1}@ + 1@))"',
        ADD: "    echo $(($1 + $2@ * 2@))",
        FIB: "    local a=0 b=1 i\n    for ((i = 0; i < $1; i++)); do\n"
        '        read -r a b <<< "$b $((a + b))"\n    done\n'
        "    echo $((a@ - 1@))",
    },
    "rs": {
        STRLEN: "    string.chars().count() as isize@ + 1@",
        ADD: "    x + y@ * 2@",
        FIB: "    let (mut a, mut b) = (0, 1);\n    for _ in 0..n { let c = a + b; a = b; b = c; }\n    a@ - 1@",
    },
}
# Leaves before the tests with the status of success.
LEAVES = {
    "cpp": "    exit(0);",
    "java": "        System.exit(0);\n        return 0l;",
    "js": "  process.exit(0);\n}\n",
    "ts": "  eval('process.exit(0)');\n  return 0;\n}\n",
    "php": "    exit(0);\n}\n",
    "sh": "    exit 0",
    "rs": "    std::process::exit(0)",
}
# PHP's strlen can not be defined again: MultiPL-E's task is at fault there, with any solution.
FAULTY = {("php", STRLEN)}


def there(language):
    found = language_of(language)
    return pytest.param(
        language, marks=pytest.mark.skipif(not found.available, reason=f"no {language} here: {found.install_hint}")
    )


def file_of(*parts):
    path = shared_directory().joinpath("data", *parts)
    if not path.exists():
        pytest.skip(f"problem set not at hand ({path}); set RCJAX_SHARED to run this")
    return path


def bodies(text):
    """The right and the wrong one."""
    parts = text.split("@")
    return parts[0] + parts[2], "".join(parts)


@pytest.mark.parametrize("language", [there(name) for name in SOLVED])
def test_multipl_e_solutions_pass_and_wrong_and_early_ones_fail(language):
    benchmark = load_benchmark(f"multipl-e-{language}", file_of("multipl_e", f"humaneval-{language}.jsonl"))
    if language == "java" and languages.javatuples() is None:
        pytest.skip(f"no javatuples here: apt-get install libjavatuples-java, or set {languages.JAVATUPLES}")
    samples, expected = [], []
    for name, text in SOLVED[language].items():
        if (language, name) in FAULTY:
            continue
        prompt = benchmark.tasks[name].prompt
        right, wrong = bodies(text)
        closing = "" if right.rstrip().endswith("}") and language in ("js", "ts", "php") else "\n}\n"
        for body, verdict in ((right, "pass"), (right + closing, "pass"), (wrong, "fail"), (LEAVES[language], "fail")):
            samples.append(CodeSample(name, prompt + body))
            expected.append(verdict)
    score = score_samples(benchmark, samples)
    found = [verdict for name in SOLVED[language] for verdict in score.verdicts.get(name, [])]
    assert [verdict.base for verdict in found] == expected, found
    assert all((verdict.base == "pass") == (verdict.failure == "") for verdict in found)


@pytest.mark.parametrize("language", [there(name) for name in ("cpp", "java", "js", "go", "rust", "python")])
def test_humaneval_x_canonical_solutions_pass_and_mutated_ones_fail(language):
    benchmark = load_benchmark(f"humaneval-x-{language}", file_of("humaneval_x", f"humaneval_{language}.jsonl.gz"))
    tasks = list(benchmark.tasks.values())[:6]
    if language == "go" and not languages.testify():
        pytest.skip("no testify here: apt-get install golang-github-stretchr-testify-dev")
    samples = [CodeSample(task.id, task.canonical) for task in tasks]
    samples += [CodeSample(task.id, mutated(task.canonical)) for task in tasks]
    score = score_samples(benchmark, samples)
    for task in tasks:
        right, wrong = score.verdicts[task.id]
        assert right.base == "pass", (task.id, right)
        assert wrong.base in ("fail", "error", "timeout"), (task.id, wrong)


def mutated(text):
    """The last ``return`` of a program, or what stands for it, is kept from coming to its end."""
    for one, other in (
        ("true", "false"),
        ("return", "return !"),
        ("result", "!result"),
        ("+", "-"),
        ("\n    ", "\n    0;"),
    ):
        if one in text.rstrip("}\n "):
            head, tail = text[: text.rindex(one)], text[text.rindex(one) + len(one) :]
            return head + other + tail
    raise AssertionError(text)


def test_missing_toolchain_skips_tasks_and_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "humaneval-php.jsonl"
    row = {"name": "one", "language": "php", "prompt": "<?php\n", "tests": "one();", "stop_tokens": ["\nfunction"]}
    path.write_text(json.dumps(row) + "\n")
    benchmark = load_benchmark("multipl-e-php", path)
    languages._toolchain.cache_clear()
    monkeypatch.setenv("PATH", "/nowhere")
    try:
        score = score_samples(benchmark, [CodeSample("one", "<?php\nfunction one() {}\n")])
    finally:
        languages._toolchain.cache_clear()
    assert score.skipped == {"one": "php is not installed here; get it with: apt-get install php-cli"}
    assert score.verdicts == {}


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def packed(cases):
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(cases)))).decode()


def test_livecodebench_tasks_of_both_forms(tmp_path):
    rows = [
        {
            "question_id": "sum",
            "question_content": "Print the sum.",
            "starter_code": "",
            "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
            "private_test_cases": packed([{"input": "4 5\n", "output": "9.0 \n\n", "testtype": "stdin"}]),
            "metadata": "{}",
        },
        {
            "question_id": "pair",
            "question_content": "Swap.",
            "starter_code": "class Solution:\n    def swap(self, a, b):\n        ",
            "public_test_cases": json.dumps([{"input": '1\n"x"', "output": '["x", 1]', "testtype": "functional"}]),
            "private_test_cases": "[]",
            "metadata": json.dumps({"func_name": "swap"}),
        },
    ]
    benchmark = load_benchmark("livecodebench", written(tmp_path / "test6.jsonl", rows))
    swap = "class Solution:\n    def swap(self, a, b):\n        return "
    cases = [
        ("sum", "a, b = map(int, input().split())\nprint(a + b)\n", "pass"),
        ("sum", "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))\nsys.exit(0)\n", "pass"),
        ("sum", "print(sum(map(int, open(0).read().split())))\nexit()\n", "pass"),
        ("sum", "input()\nprint(3)\n", "fail"),
        ("sum", "while True:\n    pass\n", "timeout"),
        ("sum", "import sys\nsys.exit(1)\n", "fail"),
        ("sum", "print(9)\nimport os\nos._exit(0)\n", "error"),
        ("pair", swap + "b, a\n", "pass"),
        ("pair", swap + "[b, a]\n", "pass"),
        ("pair", swap + "[a, b]\n", "fail"),
    ]
    score = score_samples(benchmark, [CodeSample(name, text) for name, text, _ in cases])
    found = [verdict for name in ("sum", "pair") for verdict in score.verdicts[name]]
    assert [verdict.base for verdict in found] == [verdict for _, _, verdict in cases], found
    assert "test 2 of 2: printed '3\\n', expected '9.0 \\n\\n'" in found[3].failure


def test_private_cases_that_would_run_code_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    text = base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()
    row = {"question_id": "q", "question_content": "", "private_test_cases": text}
    with pytest.raises(BenchmarkError, match="'private_test_cases' is neither JSON nor packed JSON"):
        load_benchmark("livecodebench", written(tmp_path / "f.jsonl", [row]))


def test_bigcodebench_tasks_run_with_their_packages(tmp_path):
    test = (
        "import unittest\nimport numpy as np\nclass TestCases(unittest.TestCase):\n"
        "    def test_mean(self):\n        self.assertAlmostEqual(task_func(np.array([1, 2])), 1.5)\n"
        "    def test_files(self):\n        open('x', 'w').write('y')\n        self.assertEqual(task_func([3]), 3)\n"
    )
    prompt = 'import numpy as np\ndef task_func(values):\n    """Mean."""\n'
    row = {"complete_prompt": prompt, "canonical_solution": "    return np.mean(values)\n", "test": test}
    row |= {"entry_point": "task_func", "task_id": "BigCodeBench/0", "libs": "['numpy', 'unittest']"}
    lacks = row | {"task_id": "BigCodeBench/1", "libs": "['no_such_package']"}
    benchmark = load_benchmark("bigcodebench", written(tmp_path / "b.jsonl", [row, lacks]))
    cases = [
        (benchmark.tasks["BigCodeBench/0"].canonical, "pass"),
        (prompt + "    return np.sum(values)\n", "fail"),
        (prompt + "    import os\n    os._exit(0)\n", "fail"),
        ("import os\nos._exit(0)\n", "fail"),
        ("import unittest\nunittest.TestCase.assertEqual = None\n" + prompt + "    return 0\n", "fail"),
    ]
    samples = [CodeSample("BigCodeBench/0", text) for text, _ in cases] + [CodeSample("BigCodeBench/1", "")]
    score = score_samples(benchmark, samples)
    assert [verdict.base for verdict in score.verdicts["BigCodeBench/0"]] == [verdict for _, verdict in cases]
    assert "lacks the packages no_such_package" in score.skipped["BigCodeBench/1"]


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        (
            "multipl-e-cpp",
            {"name": "x", "language": "java", "prompt": "", "tests": ""},
            "language 'java', but multipl-e-cpp",
        ),
        ("multipl-e-cpp", {"name": "x", "language": "cpp", "prompt": ""}, "field 'tests' is missing"),
        ("humaneval-x-js", {"task_id": "CPP/0"}, "task_id 'CPP/0' is none of humaneval-x-js"),
        ("livecodebench", {"question_id": "x", "question_content": ""}, "holds a test"),
        ("bigcodebench", {"task_id": "x", "complete_prompt": "", "test": ""}, "no class TestCases"),
    ],
)
def test_wrong_file_is_told_with_its_line(tmp_path, name, row, said):
    with pytest.raises(BenchmarkError, match="line 1") as raised:
        load_benchmark(name, written(tmp_path / "file.jsonl", [row]))
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("1 2\n", "1 2", True),
        (" 1 2 \n", "1 2\n", True),
        ("1.0 2\n", "1 2.00\n", True),
        ("yes\n", "no\n", False),
        ("1\n2\n", "1\n", False),
        ("1e400\n", "2e400\n", False),
        ("nan\n", "x\n", False),
    ],
)
def test_outputs_are_compared_line_by_line_and_numbers_by_value(printed, expected, same):
    assert programs.same_output(printed, expected) is same


def test_braces_in_strings_and_comments_do_not_count():
    assert programs.open_braces("f() { char c = '{'; s = \"}}\"; // }\n /* { */ if (x) {", "cpp") == 2
    assert programs.open_braces("f() { echo ${1//[^0-9]/}; }", "sh") == 0
