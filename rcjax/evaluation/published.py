"""pass@1 that was published for the method and its neighbours, greedy, in percent.

Source: ReflectionCoder, arXiv 2405.17057, table 1; scored by evalplus.
"""

from __future__ import annotations

BENCHMARKS = ("humaneval", "humaneval+", "mbpp", "mbpp+")

PUBLISHED: dict[str, tuple[float, float, float, float]] = {
    "WizardCoder-CL-34B": (73.2, 64.6, 73.2, 59.9),
    "MagiCoder-CL-7B": (71.3, 64.6, 68.4, 56.9),
    "OpenCodeInterpreter-DS-6.7B": (76.2, 72.0, 73.9, 63.7),
    "ReflectionCoder-CL-7B": (75.0, 68.9, 72.2, 61.4),
    "ReflectionCoder-DS-6.7B": (80.5, 74.4, 81.5, 69.6),
    "ReflectionCoder-DS-33B": (82.9, 76.8, 84.1, 72.0),
}
