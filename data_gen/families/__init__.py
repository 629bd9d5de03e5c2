"""Parametrised problem families: thousands of small tasks, composed from one vocabulary of pieces.

``family_problems(count, seed)`` draws distinct tasks. Distinct means by behaviour: two tasks that agree on the fixed
probe inputs are one, so a held-out task never behaves like a training task. Tasks that are constant, that raise, or
in which some piece changes nothing are dropped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from data_gen.families import loops, pipelines
from data_gen.families.select import choose_tests, judge, probes, safe_mutants
from data_gen.families.task import Task
from data_gen.mutations import normalize
from data_gen.parallel import ordered_map
from data_gen.problems import Problem, ProblemError
from rcjax.progress import progress

# name -> (draws a task, share of the tasks)
FAMILIES: dict[str, tuple[Callable[[random.Random], Task], int]] = {
    "lists": (pipelines.draw_lists, 5),
    "words": (pipelines.draw_words, 4),
    "texts": (pipelines.draw_texts, 3),
    "numbers": (pipelines.draw_numbers, 3),
    "dicts": (pipelines.draw_dicts, 3),
    "search": (loops.draw_search, 3),
    "until": (loops.draw_until, 2),
    "totals": (loops.draw_totals, 3),
    "counts": (loops.draw_counts, 3),
    "pairs": (loops.draw_pairs, 2),
}
MAX_SOLUTION = 170  # characters
TESTS = 4  # a problem
MUTANTS = 10  # that the tests are chosen against
_PATIENCE = 4000  # draws in a row that may fail before a family counts as used up


def draw_tasks(
    count: int, seed: int, families: Sequence[str] | None = None, dropped: Counter[str] | None = None
) -> list[Task]:
    """``count`` tasks of different behaviour, in an order that mixes the families.

    Args:
      count: number of tasks.
      seed: everything follows from it.
      families: names to draw from; None for all.
      dropped: filled with how many draws were dropped for which reason.

    Raises:
      ProblemError: unknown family, or fewer than ``count`` distinct tasks were found.
    """
    names = list(families) if families else list(FAMILIES)
    for name in names:
        if name not in FAMILIES:
            raise ProblemError(f"families: {name!r} is not a family; there are {', '.join(FAMILIES)}")
    dropped = Counter() if dropped is None else dropped
    rng = random.Random(f"families/{seed}")
    schedule = [name for name in names for _ in range(FAMILIES[name][1])]
    keys: set[str] = set()
    behaviours: set[tuple[str, ...]] = set()
    inputs: dict[tuple[str, ...], list] = {}
    tasks: list[Task] = []
    failures: Counter[str] = Counter()
    while len(tasks) < count:
        if not schedule:
            raise ProblemError(
                f"families: {count} tasks were asked for, but {', '.join(names)} gave only {len(tasks)} of different "
                "behaviour; ask for fewer or for more families"
            )
        name = rng.choice(schedule)
        task = FAMILIES[name][0](rng)
        reason = ""
        if task.key in keys:
            reason = "drawn before"
        elif len(task.solution) > MAX_SOLUTION:
            reason = "long"
        else:
            keys.add(task.key)
            if task.params not in inputs:
                inputs[task.params] = probes(task.params)
            found, reason = judge(task, inputs[task.params])
            behaviour = (",".join(task.params).replace("m", "n"), *found)
            if not reason and behaviour in behaviours:
                reason = "behaves like another"
            behaviours.add(behaviour)
        if not reason:
            failures[name] = 0
            tasks.append(dataclasses.replace(task, solution=normalize(task.solution)))
            continue
        dropped[reason] += 1
        failures[name] += 1
        if failures[name] >= _PATIENCE:
            schedule = [other for other in schedule if other != name]
    return tasks


def to_problem(task: Task, tests: tuple[str, ...], seed: int, phrasings: int = 4) -> Problem:
    """``task`` with ``phrasings`` different statements."""
    rng = random.Random(f"phrasings/{seed}/{task.key}")
    prompts: list[str] = []
    for number in range(8 * phrasings):
        prompt = task.phrase(rng, number)
        if prompt not in prompts:
            prompts.append(prompt)
        if len(prompts) == phrasings:
            break
    return Problem(
        id=f"families/{task.key}",
        task=task.key,
        family=task.family,
        prompts=tuple(prompts),
        solution=task.solution,
        entry_point="solve",
        tests=tests,
    )


@contextlib.contextmanager
def test_chooser(seed: int) -> Iterator[Callable[[tuple[str, tuple[str, ...], str]], tuple[str, ...]]]:
    """For ``ordered_map``: (key, parameters, solution) -> tests."""

    def choose(item: tuple[str, tuple[str, ...], str]) -> tuple[str, ...]:
        key, params, solution = item
        rng = random.Random(f"tests/{seed}/{key}")
        return choose_tests(solution, params, rng, safe_mutants(solution, rng, MUTANTS), TESTS)

    yield choose


def family_problems(
    count: int, seed: int, families: Sequence[str] | None = None, phrasings: int = 4, workers: int | None = None
) -> list[Problem]:
    """``count`` problems from the families; the same for the same arguments, ``workers`` excepted.

    See ``draw_tasks`` for errors.
    """
    with progress("composing tasks", total=count, unit="tasks") as bar:
        tasks = draw_tasks(count, seed, families)
        items = [(task.key, task.params, task.solution) for task in tasks]
        problems = []
        tests = ordered_map("data_gen.families:test_chooser", seed, items, workers)
        for task, chosen in zip(tasks, tests, strict=True):
            problems.append(to_problem(task, chosen, seed, phrasings))
            bar.advance(1)
    return problems
