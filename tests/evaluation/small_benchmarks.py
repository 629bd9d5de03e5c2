"""Benchmark files of a few tasks, in the forms that evalplus, OpenAI and Google publish."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

HUMANEVAL_PLUS = (
    {
        "task_id": "HumanEval/0",
        "prompt": 'def double(x):\n    """Twice x."""\n',
        "entry_point": "double",
        "canonical_solution": "    return 2 * x\n",
        "test": "",
        "contract": "",
        "base_input": [[1], [2]],
        "plus_input": [[0], [-3], [1000]],
        "atol": 0,
    },
    {
        "task_id": "HumanEval/4",
        "prompt": "def halves(xs):\n",
        "entry_point": "halves",
        "canonical_solution": "    return [x / 2 for x in xs]\n",
        "test": "",
        "contract": "",
        "base_input": [[[1.0, 2.0]], [[]]],
        "plus_input": [[[3.0]], [[0.1, 0.2]]],
        "atol": 0,
    },
    {
        "task_id": "HumanEval/32",
        "prompt": "def find_zero(xs):\n",
        "entry_point": "find_zero",
        "canonical_solution": "    return -xs[0] / xs[1]\n",
        "test": "",
        "contract": "",
        "base_input": [[[1, 2]], [[-6, 3]]],
        "plus_input": [[[10, 4]]],
        "atol": 1e-4,
    },
)

MBPP_PLUS = (
    {
        "task_id": "Mbpp/2",
        "prompt": '"""\nWrite a function to find the shared elements.\nassert True\n"""\n',
        "entry_point": "similar_elements",
        "canonical_solution": "def similar_elements(a, b):\n    return tuple(set(a) & set(b))\n",
        "contract": "",
        "assertion": "",
        "base_input": [[[3, 4, 5], [5, 4, 10]]],
        "plus_input": [[[1, 2], [3]], [["a", "b", "c"], ["c", "b"]]],
        "atol": 0,
    },
    {
        "task_id": "Mbpp/252",
        "prompt": '"""\nPolar form.\n"""\n',
        "entry_point": "convert",
        "canonical_solution": "import cmath\ndef convert(z):\n    return cmath.polar(z)\n",
        "contract": "",
        "assertion": "",
        "base_input": [["1"], ["(4+0j)"]],
        "plus_input": {},
        "atol": 0,
    },
    {
        "task_id": "Mbpp/737",
        "prompt": '"""\nStarts with a vowel.\n"""\n',
        "entry_point": "check_str",
        "canonical_solution": "import re\ndef check_str(s):\n    return re.search('^[aeiou]', s)\n",
        "contract": "",
        "assertion": "",
        "base_input": [["annie"], ["dawood"]],
        "plus_input": [[""], ["x"]],
        "atol": 0,
    },
)

HUMANEVAL = (
    {
        "task_id": "HumanEval/0",
        "prompt": "def double(x):\n",
        "entry_point": "double",
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(-3) == -6\n",
    },
)

MBPP = (
    {
        "task_id": 2,
        "prompt": "Write a function to double.",
        "code": "def twice(x):\r\n    return 2 * x\r\n",
        "test_imports": ["import math"],
        "test_list": ["assert twice(2) == 4", "assert math.isclose(twice(0.5), 1)"],
    },
)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]], packed: bool = False) -> Path:
    """JSON lines, gzipped if ``packed``."""
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if packed else text)
    return path
