"""Several rounds: the model sees what running its program gave, and tries again.

The baseline that one-off generation is to spare (self-debug, Chen et al. 2023, arXiv 2304.05128): only the base tests
are run for feedback, the plus tests stay hidden, and a program that passes is final. What each round costs is counted:
generated tokens, executions that feedback needed, wall time.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rcjax.evaluation.benchmarks import Benchmark
from rcjax.evaluation.generation import Generated
from rcjax.evaluation.pass_at_k import wilson_interval
from rcjax.evaluation.prompting import Attempt
from rcjax.evaluation.samples import CodeSample
from rcjax.evaluation.scoring import PASS, BenchmarkScore, score_samples

MOST_FEEDBACK = 2000  # characters: a page of output must not fill the context


@dataclasses.dataclass(frozen=True)
class Round:
    """Where things stand after a round; costs are those of this round and all before it.

    Attributes:
      number: 1 is the one-off answer.
      score: of the last program of each task.
      retried: tasks that got a new program in this round.
      tokens: generated.
      executions: programs run on the base tests so that the model could see what comes of it.
      seconds: wall time of generating, and of running for feedback.
    """

    number: int
    score: BenchmarkScore
    retried: int
    tokens: int
    executions: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Figures a problem, as the report shows them."""
        problems = len(self.score.verdicts)
        rates = {tests: self.score.pass_at(1, tests) for tests in ("base", "plus")[: 1 + self.score.benchmark.has_plus]}
        return {
            "round": self.number,
            **{
                tests: {"pass@1": rate, "interval": list(wilson_interval(rate, problems))}
                for tests, rate in rates.items()
            },
            "retried": self.retried,
            "tokens_per_problem": self.tokens / problems,
            "executions_per_problem": self.executions / problems,
            "seconds_per_problem": self.seconds / problems,
        }


def refine(
    base: Benchmark,
    first: Round,
    samples: Sequence[Generated],
    rounds: int,
    generate: Callable[[int, Mapping[str, Sequence[Attempt]]], list[Generated]],
    score: Callable[[Sequence[Generated]], BenchmarkScore],
    run_base: Callable[..., BenchmarkScore] = score_samples,
) -> tuple[list[Round], list[list[Generated]]]:
    """Further rounds behind the first.

    Args:
      base: the benchmark with its base tests alone.
      first: the one-off round.
      samples: its samples, one a task.
      rounds: in all.
      generate: (number of the round, task id -> attempts so far) -> new samples of these tasks.
      score: verdicts of new samples, plus tests included.
      run_base: runs samples on ``base``.

    Returns:
      All rounds, ``first`` among them, and the new samples of each behind it. A round with nothing to mend is the last.
    """
    done, new_samples = [first], []
    attempts: dict[str, list[Attempt]] = {}
    latest = list(samples)
    for number in range(2, rounds + 1):
        before = done[-1]
        start = time.monotonic()
        found = run_base(base, [CodeSample(sample.task_id, sample.solution) for sample in latest])
        feedback_seconds = time.monotonic() - start
        executed = len(latest)
        failed = {
            sample.task_id: sample
            for sample in latest
            for verdict in found.verdicts.get(sample.task_id, ())
            if verdict.base != PASS
        }
        if not failed:
            break
        for task_id, sample in failed.items():
            feedback = _feedback(found.verdicts[task_id][0].failure, found.verdicts[task_id][0].base)
            attempts.setdefault(task_id, []).append(Attempt(sample.code, feedback))
        latest = generate(number, {task_id: attempts[task_id] for task_id in failed})
        verdicts = dict(before.score.verdicts)
        verdicts |= score(latest).verdicts
        done.append(
            Round(
                number=number,
                score=dataclasses.replace(before.score, verdicts=verdicts),
                retried=len(latest),
                tokens=before.tokens + sum(sample.tokens for sample in latest),
                executions=before.executions + executed,
                seconds=before.seconds + feedback_seconds + sum(sample.seconds for sample in latest),
            )
        )
        new_samples.append(latest)
    return done, new_samples


def _feedback(failure: str, verdict: str) -> str:
    """What the model is shown; the end of it where it is long, which holds the exception."""
    text = failure.strip() or {"timeout": "The program did not end in time."}.get(verdict, "The program failed.")
    return text if len(text) <= MOST_FEEDBACK else "...\n" + text[-MOST_FEEDBACK:]
