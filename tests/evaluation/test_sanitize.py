"""The code in an answer: as the reference cuts it, and the same however early generation ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcjax.evaluation.sanitize import STOPS, continuation, fenced_code, is_complete

F = "def f(x):\n    return x"


@pytest.mark.parametrize(
    ("answer", "opened", "code"),
    [
        (f"{F}\n```", True, F),  # the usual form: the prompt opened the fence
        (f"{F}\n```\nThis returns x.\n```python\nf(1)\n```", True, F),
        (f"{F}\n\nassert f(1) == 1\n```", True, F),
        (f"{F}\n\nprint(f(1))\n", True, F),
        (f"{F}\n# Test\nf(1)\n```", True, F),
        (f"{F}\nif __name__ == '__main__':\n    f(1)\n```", True, F),
        (f"{F}\n    # never closed", True, f"{F}\n    # never closed"),
        (f"```python\n{F}\n```", True, F),  # opened again by the model
        (f"Sure:\n```python\n{F}\n```\nDone.", True, F),
        (f"```\n{F}\n```", True, F),
        (f"{F}```", True, F),
        (f"\n\n  {F}", True, F),
        ("    return x\n```", True, "    return x"),  # a body alone keeps its indentation
        ("", True, ""),
        (f"Sure:\n```python\n{F}\n```\nDone.", False, F),
        (f"If you\nif like:\n```\n{F}\n```", False, F),  # a stop string in prose
        (f"```Python\r\n{F}\r\n```", False, F),
        (F, False, F),  # no fence at all
        ("```python\n```", False, ""),
        (
            f'```python\ndef g():\n    """\n    ```\n    g()\n    ```\n    """\n{F}\n```',
            False,
            f'def g():\n    """\n    ```\n    g()\n    ```\n    """\n{F}',
        ),
    ],
)
def test_code_is_cut_out(answer, opened, code):
    assert fenced_code(answer, opened=opened) == code


def reference(answer):
    """What the reference's script does with an answer whose fence the prompt opened, in other words than ours."""
    marks = answer.count("```")
    if marks % 2:
        answer = answer[: answer.rindex("```")]
    elif marks:
        answer = answer.split("```", 1)[1].split("\n", 1)[1]
    for stop in ("\n# Test", "\nif", "\nassert", "\nprint", "\n```"):
        answer = answer.split(stop)[0]
    return answer.strip()


LINES = ("def f(x):", "    return x", "", "assert f(1)", "print(f(1))", "# Test", "import re", "if x:", "    if x:")


@given(st.lists(st.sampled_from(LINES)), st.lists(st.sampled_from(LINES)), st.booleans())
def test_agrees_with_the_reference_where_the_fence_is_closed(code, behind, again):
    answer = "\n".join(["def g():", *code, "```", *behind])
    if again:
        answer = f"```python\n{answer}"
    assert fenced_code(answer, opened=True) == reference(answer)


PIECES = (*LINES, "```", "```python", "text ```", "```x y", "  ```")


@given(st.lists(st.sampled_from(PIECES)), st.booleans(), st.integers(0, 200), st.text(max_size=8))
def test_generation_may_end_once_the_answer_is_complete(lines, opened, cut, more):
    answer = "\n".join(lines)[:cut]
    if is_complete(answer, opened=opened):
        assert fenced_code(answer + more, opened=opened) == fenced_code(answer, opened=opened)


def test_complete_answers_are_seen_to_be():
    assert is_complete(f"{F}\n```\n", opened=True)
    assert not is_complete(f"{F}\n```", opened=True), "it may become ```python"
    assert is_complete(f"{F}\nprint", opened=True)
    assert not is_complete("Well\nif so:\n", opened=False)
    assert is_complete(f"Well\nif so:\n```py\n{F}\nif", opened=False)
    assert not is_complete(F, opened=True)


def test_continuations_keep_what_they_begin_with():
    stops = ("\ndef ", "\n}")
    assert continuation("  return x\n\ndef g():\n", opened=False, stops=stops) == "  return x\n"
    assert continuation("    return x;\n```\nSo", opened=True, stops=stops) == "    return x;\n"
    assert continuation(" x;\n}\n```", opened=True, stops=stops) == " x;"
    assert continuation("  return x", opened=False, stops=STOPS) == "  return x"
