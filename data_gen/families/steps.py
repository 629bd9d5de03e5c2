"""Steps on whole lists for the pipelines of ``pipelines.py``."""

from __future__ import annotations

import dataclasses

from data_gen.families.pieces import INT_CONDITIONS, Condition


@dataclasses.dataclass(frozen=True)
class Step:
    """A step from one value to another.

    Attributes:
      key: name, unique among the steps on one type.
      gives: type of the result: ``ints``, ``words``, ``text``, ``dict`` or ``end`` (only the last step may give it).
      code: expression with ``{v}`` for the value.
      verbs: orders; ``{things}``/``{thing}`` stand for the elements' noun.
      nouns: noun phrases with ``{}`` for the value.
    """

    key: str
    gives: str
    code: str
    verbs: tuple[str, ...]
    nouns: tuple[str, ...]


def _order(gives: str) -> tuple[tuple[Step, ...], ...]:
    """Steps that both kinds of lists share."""
    return (
        (
            Step(
                "sort",
                gives,
                "sorted({v})",
                ("sort the {things} in ascending order", "sort the {things}"),
                ("the sorted list of {}", "the ascending order of {}"),
            ),
        ),
        (
            Step(
                "desc",
                gives,
                "sorted({v}, reverse=True)",
                ("sort the {things} in descending order", "order the {things} descending"),
                ("the descending order of {}",),
            ),
        ),
        (
            Step(
                "reverse",
                gives,
                "{v}[::-1]",
                ("reverse the list", "put the {things} in reverse order"),
                ("the reversed list of {}", "the reverse of {}"),
            ),
        ),
        (
            Step(
                "distinct",
                gives,
                "sorted(set({v}))",
                ("sort the distinct {things}", "remove duplicates and sort"),
                ("the sorted distinct values of {}",),
            ),
        ),
        (
            Step(
                "second",
                gives,
                "{v}[::2]",
                ("take every second {thing}", "keep every other {thing} from the first on"),
                ("every second of {}",),
            ),
        ),
        tuple(
            Step(
                f"first{k}",
                gives,
                f"{{v}}[:{k}]",
                (f"take the first {k} {{things}}", f"keep just the first {k} {{things}}"),
                (f"the first {k} of {{}}",),
            )
            for k in (2, 3, 4)
        ),
        tuple(
            Step(
                f"last{k}",
                gives,
                f"{{v}}[-{k}:]",
                (f"take the last {k} {{things}}", f"keep just the last {k} {{things}}"),
                (f"the last {k} of {{}}",),
            )
            for k in (2, 3, 4)
        ),
        tuple(
            Step(
                f"skip{k}",
                gives,
                f"{{v}}[{k}:]",
                (f"skip the first {k} {{things}}", f"leave out the first {k} {{things}}"),
                (f"all but the first {k} of {{}}",),
            )
            for k in (1, 2, 3)
        ),
        tuple(
            Step(
                f"chop{k}",
                gives,
                f"{{v}}[:-{k}]",
                (f"drop the last {k} {{things}}", f"leave out the last {k} {{things}}"),
                (f"all but the last {k} of {{}}",),
            )
            for k in (1, 2, 3)
        ),
    )


def end(key: str, code: str, verbs: tuple[str, ...], nouns: tuple[str, ...]) -> Step:
    """A step that ends a pipeline."""
    return Step(key, "end", code, verbs, nouns)


def quantified(conditions: tuple[tuple[Condition, ...], ...], element: str) -> tuple[tuple[Step, ...], ...]:
    """``any`` and ``all`` over each condition on the element named ``element``."""
    flat = [condition for group in conditions for condition in group]

    def step(name: str, condition: Condition) -> Step:
        test = condition.code.format(x=element)
        quantity = "any {thing}" if name == "any" else "every {thing}"
        return end(
            f"{name}-{condition.key}",
            f"{name}([{test} for {element} in {{v}}])",
            tuple(f"tell whether {quantity} {clause}" for clause in condition.one),
            tuple(
                f"whether {name} of {{}} {clause}" for clause in (condition.one if name == "any" else condition.many)
            ),
        )

    return tuple(tuple(step(name, condition) for condition in flat) for name in ("any", "all"))


_COUNT_LIST = (
    (
        end(
            "len",
            "len({v})",
            ("return how many {things} there are", "count the {things}"),
            ("the number of {}", "the count of {}"),
        ),
    ),
    (
        end(
            "kinds",
            "len(set({v}))",
            ("count the distinct {things}", "return how many different {things} there are"),
            ("the number of distinct values of {}",),
        ),
    ),
)

INT_ORDER = (
    *_order("ints"),
    (
        Step(
            "diffs",
            "ints",
            "[b - a for a, b in zip({v}, {v}[1:])]",
            ("take the differences of neighbors",),
            ("the neighbor differences of {}",),
        ),
    ),
    (
        Step(
            "pairsums",
            "ints",
            "[a + b for a, b in zip({v}, {v}[1:])]",
            ("take the sums of neighbors",),
            ("the neighbor sums of {}",),
        ),
    ),
)
INT_END = (
    (end("sum", "sum({v})", ("return their sum", "add them up"), ("the sum of {}", "the total of {}")),),
    (
        end(
            "max",
            "max({v}, default=0)",
            ("return the largest or 0 if there is none", "return the maximum with 0 as default"),
            ("the largest of {}", "the maximum of {}"),
        ),
    ),
    (
        end(
            "min",
            "min({v}, default=0)",
            ("return the smallest or 0 if there is none", "return the minimum with 0 as default"),
            ("the smallest of {}", "the minimum of {}"),
        ),
    ),
    *_COUNT_LIST,
    tuple(
        end(
            f"count{c}",
            f"{{v}}.count({c})",
            (f"count how often {c} occurs", f"return the number of times {c} occurs"),
            (f"how often {c} occurs in {{}}",),
        )
        for c in range(1, 7)
    ),
    tuple(
        end(
            f"sum%{c}",
            f"sum({{v}}) % {c}",
            (f"return their sum modulo {c}",),
            (f"the sum modulo {c} of {{}}",),
        )
        for c in range(3, 8)
    ),
    tuple(
        end(
            f"sum>{c}",
            f"sum({{v}}) > {c}",
            (f"tell whether their sum is greater than {c}",),
            (f"whether {c} is exceeded by the sum of {{}}",),
        )
        for c in (5, 10, 15, 20)
    ),
    *quantified(INT_CONDITIONS, "x"),
)

WORD_ORDER = (
    *_order("words"),
    (
        Step(
            "bylen",
            "words",
            "sorted({v}, key=len)",
            ("sort the {things} by length", "order the {things} from shortest to longest"),
            ("the order by length of {}",),
        ),
    ),
)
_SEPARATORS = (("-", "'-'"), ("", "nothing"), (" ", "spaces"), ("+", "'+'"), ("/", "'/'"))
WORD_END = (
    tuple(
        Step(
            f"join{mark}",
            "text" if mark == "" else "end",
            f"'{mark}'.join({{v}})",
            (f"join the {{things}} with {name} between", f"connect the {{things}} by {name}"),
            (f"the text joining by {name} all of {{}}",),
        )
        for mark, name in _SEPARATORS
    ),
    *_COUNT_LIST,
    (
        end(
            "longest",
            "max({v}, key=len, default='')",
            ("return the longest {thing} or '' if there is none",),
            ("the longest of {}",),
        ),
    ),
    (
        end(
            "shortest",
            "min({v}, key=len, default='')",
            ("return the shortest {thing} or '' if there is none",),
            ("the shortest of {}",),
        ),
    ),
    (
        end(
            "letters",
            "sum([len(w) for w in {v}])",
            ("return their total length", "add up their lengths"),
            ("the total length of {}",),
        ),
    ),
    (
        end(
            "least",
            "min({v}, default='')",
            ("return the first {thing} in the alphabet or '' if there is none",),
            ("the alphabetically first of {}",),
        ),
    ),
    (
        end(
            "greatest",
            "max({v}, default='')",
            ("return the last {thing} in the alphabet or '' if there is none",),
            ("the alphabetically last of {}",),
        ),
    ),
)
