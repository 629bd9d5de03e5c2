"""What the source of a program says about its runs."""

import subprocess
import sys

import pytest

from rcjax.evaluation.stateless import PLAIN_MODULES, is_stateless, keeps_to_plain_modules


@pytest.mark.parametrize(
    ("source", "stateless"),
    [
        (
            '"""Doc."""\nimport math\nK = (1, -2)\ndef f(x, y=1):\n    s = [K]\n    s.append(math.e)\n    return s\n',
            True,
        ),
        ("def f(x):\n    def g():\n        nonlocal x\n        x += 1\n    g()\n    return x\n", True),
        ("seen = []\ndef f(x):\n    seen.append(x)\n", False),
        ("def f(x, seen=[]):\n    seen.append(x)\n", False),
        ("n = 0\ndef f(x):\n    global n\n    n += 1\n", False),
        ("def f(x):\n    f.n = x\n", False),
        ("def f(x):\n    f.__dict__.update(n=1)\n", False),
        ("def f(x):\n    globals()['n'] = x\n", False),
        ("import functools\n@functools.lru_cache\ndef f(x):\n    return x\n", False),
        ("import random\ndef f(x):\n    return random.random()\n", False),
        ("class A:\n    n = []\ndef f(x):\n    A.n.append(x)\n", False),
        ("from math import *\ndef f(x):\n    return x\n", False),
        ("g = (i for i in range(3))\ndef f(x):\n    return next(g)\n", False),
        ("def f(x) return x", False),
    ],
)
def test_what_can_keep_a_state(source, stateless):
    assert is_stateless(source) is stateless


@pytest.mark.parametrize(
    ("source", "plain"),
    [
        (
            "import math, sys\nfrom collections import Counter\ndef f(x):\n    import json\n    return json.dumps(x)\n",
            True,
        ),
        ("def f(x) return x", True),
        ("import numpy as np\n", False),
        ("def f(x):\n    from numpy import array\n    return array(x)\n", False),
        ("import collections.abc\n", False),  # which loads nothing else, but is not on the list
        ("from . import x\n", False),
        ("import shutil\n", False),
        ("import tempfile\n", False),  # it loads shutil
        ("import importlib\n", False),
        ("def f(x):\n    return __import__('num' + 'py').array(x)\n", False),
        ("def f(x):\n    return __builtins__['__im' + 'port__']('numpy')\n", False),
        ("def f(x):\n    exec('import num' + 'py')\n", False),
        ("import sys\ndef f(x):\n    return sys.modules\n", False),
        ("from sys import modules\n", False),
        ("from dataclasses import builtins\n", False),
        ("import sys\ndef f(x):\n    return sys.__dict__['mod' + 'ules']\n", False),
        ("import sys\ndef f(x):\n    return getattr(sys, 'mod' + 'ules')\n", False),
        ("from random import _os as os\n", True),
    ],
)
def test_what_can_import_more_than_the_plain_modules(source, plain):
    assert keeps_to_plain_modules(source) is plain


def test_plain_modules_load_nothing_that_evalplus_takes_from():
    """Where programs that import these alone run, neither of the following is loaded, nor made harmless."""
    names = ", ".join(sorted(PLAIN_MODULES))
    code = f"import {names}, sys\nprint({{'shutil', 'subprocess', 'numpy', 'psutil', 'tkinter'}} & sys.modules.keys())"
    said = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "set()\n"
