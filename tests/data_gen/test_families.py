"""The families give what the training relies on: distinct tasks, right solutions, tests that catch faults."""

import random

import pytest

from data_gen.families import FAMILIES, draw_tasks, family_problems
from data_gen.families.inputs import draw_inputs
from data_gen.families.select import compiled, outputs, safe_mutants
from data_gen.mutations import normalize
from data_gen.problems import ProblemError

COUNT = 160


@pytest.fixture(scope="module")
def problems():
    return family_problems(COUNT, seed=3, workers=1)


def passes(code, tests):
    try:
        exec(code + "\n".join(tests), {})
    except Exception:
        return False
    return True


def test_same_seed_gives_same_problems_with_any_number_of_workers(problems):
    assert family_problems(COUNT, seed=3, workers=2) == problems
    assert family_problems(COUNT, seed=4, workers=1) != problems


def test_solutions_pass_their_tests_and_have_the_printed_style(problems):
    for problem in problems:
        assert passes(problem.solution, problem.tests), problem.id
        assert normalize(problem.solution) == problem.solution


def test_every_problem_has_several_phrasings_and_short_tests(problems):
    for problem in problems:
        assert len(set(problem.prompts)) == len(problem.prompts) >= 3, problem.id
        assert 3 <= len(problem.tests) <= 5
        assert all(len(test) <= 76 and test.startswith("assert solve(") for test in problem.tests)
        assert not any("{" in prompt or "  " in prompt for prompt in problem.prompts), problem.prompts


def test_every_family_is_drawn():
    assert {problem.family for problem in family_problems(COUNT, 0, workers=1)} == set(FAMILIES)


def test_no_two_tasks_behave_the_same_on_inputs_that_chose_none_of_them():
    tasks = draw_tasks(400, seed=1)
    assert len({task.key for task in tasks}) == len(tasks)
    behaviours = {}
    for task in tasks:
        params = tuple("n" if name == "m" else name for name in task.params)
        inputs = draw_inputs(task.params, random.Random(f"fresh/{params}"), 60)
        behaviour = (task.params, outputs(task.solution, inputs))
        assert behaviour not in behaviours, (task.key, behaviours[behaviour])
        behaviours[behaviour] = task.key
        assert len(set(behaviour[1])) > 1


def test_most_single_faults_fail_a_test(problems):
    caught = total = 0
    for problem in problems:
        for code in safe_mutants(problem.solution, random.Random(problem.id), 6):
            total += 1
            caught += not passes(code, problem.tests)
    assert caught / total > 0.85, (caught, total)


def test_steps_in_another_order_are_other_tasks():
    # What a bag of words could not tell apart.
    first = compiled("def solve(xs):\n    return sorted(xs)[:2]\n")
    second = compiled("def solve(xs):\n    return sorted(xs[:2])\n")
    assert first([3, 2, 1]) != second([3, 2, 1])
    keys = {tuple(sorted(task.key.split("/"))) for task in draw_tasks(1500, 0, ["lists"])}
    assert len(keys) < 1500


def test_unknown_family_and_too_many_tasks_are_refused(monkeypatch):
    with pytest.raises(ProblemError, match="'nothing' is not a family; there are lists"):
        draw_tasks(1, 0, ["nothing"])
    monkeypatch.setattr("data_gen.families._PATIENCE", 3)  # the families hold tens of thousands of tasks
    with pytest.raises(ProblemError, match="ask for fewer"):
        draw_tasks(5000, 0, ["numbers"])
