"""Steps on texts, dictionaries and numbers for the pipelines of ``pipelines.py``."""

from __future__ import annotations

from data_gen.families.pieces import CHAR_CONDITIONS, LETTERS
from data_gen.families.steps import Step, end, quantified

TEXT_STEPS = (
    (
        Step(
            "upper",
            "text",
            "{v}.upper()",
            ("turn the text into upper case", "uppercase the text"),
            ("the uppercase form of {}",),
        ),
    ),
    (
        Step(
            "lower",
            "text",
            "{v}.lower()",
            ("turn the text into lower case", "lowercase the text"),
            ("the lowercase form of {}",),
        ),
    ),
    (
        Step(
            "mirror",
            "text",
            "{v}[::-1]",
            ("reverse the text", "write the text backwards"),
            ("the reverse of {}", "the backward form of {}"),
        ),
    ),
    (
        Step(
            "sort",
            "text",
            "''.join(sorted({v}))",
            ("sort the characters", "put the characters in order"),
            ("the sorted characters of {}",),
        ),
    ),
    (
        Step(
            "distinct",
            "text",
            "''.join(sorted(set({v})))",
            ("sort the distinct characters",),
            ("the sorted distinct characters of {}",),
        ),
    ),
    (
        Step(
            "second",
            "text",
            "{v}[::2]",
            ("take every second character", "keep every other character from the first on"),
            ("every second character of {}",),
        ),
    ),
    tuple(
        Step(
            f"first{k}",
            "text",
            f"{{v}}[:{k}]",
            (f"take the first {k} characters", f"keep just the first {k} characters"),
            (f"the first {k} characters of {{}}",),
        )
        for k in range(2, 6)
    ),
    tuple(
        Step(
            f"last{k}",
            "text",
            f"{{v}}[-{k}:]",
            (f"take the last {k} characters", f"keep just the last {k} characters"),
            (f"the last {k} characters of {{}}",),
        )
        for k in range(2, 6)
    ),
    tuple(
        Step(
            f"skip{k}",
            "text",
            f"{{v}}[{k}:]",
            (f"skip the first {k} characters", f"leave out the first {k} characters"),
            (f"all but the first {k} characters of {{}}",),
        )
        for k in range(1, 5)
    ),
    tuple(
        Step(
            f"times{k}",
            "text",
            f"{{v}} * {k}",
            (f"repeat the text {k} times",),
            (f"{k} copies of {{}}",),
        )
        for k in (2, 3)
    ),
    tuple(
        Step(
            f"strip{c}",
            "text",
            f"{{v}}.replace('{c}', '')",
            (f"remove every '{c}'", f"delete all '{c}'"),
            (f"the form without '{c}' of {{}}",),
        )
        for c in LETTERS
    ),
    tuple(
        Step(
            f"swap{a}{b}",
            "text",
            f"{{v}}.replace('{a}', '{b}')",
            (f"replace every '{a}' by '{b}'", f"change all '{a}' to '{b}'"),
            (f"the form with '{b}' for '{a}' of {{}}",),
        )
        for a in LETTERS
        for b in "xyz*"
    ),
    (Step("split", "words", "{v}.split()", ("split the text into words",), ("the words of {}",)),),
)
TEXT_END = (
    (end("len", "len({v})", ("return its length", "return how long it is"), ("the length of {}",)),),
    (
        end(
            "kinds",
            "len(set({v}))",
            ("count the distinct characters",),
            ("the number of distinct characters of {}",),
        ),
    ),
    (
        end(
            "mirrored",
            "{v} == {v}[::-1]",
            ("tell whether it is a palindrome",),
            ("whether a palindrome is {}",),
        ),
    ),
    tuple(
        end(
            f"count{c}",
            f"{{v}}.count('{c}')",
            (f"count the '{c}' in it", f"return how often '{c}' occurs"),
            (f"the count of '{c}' in {{}}",),
        )
        for c in LETTERS
    ),
    tuple(
        end(
            f"find{c}",
            f"{{v}}.find('{c}')",
            (f"return the index of the first '{c}' or -1", f"find the position of the first '{c}' or -1"),
            (f"the index of the first '{c}' in {{}}",),
        )
        for c in LETTERS
    ),
    tuple(
        end(
            f"ends{c}",
            f"{{v}}.endswith('{c}')",
            (f"tell whether it ends with '{c}'",),
            (f"whether '{c}' ends {{}}",),
        )
        for c in LETTERS
    ),
    quantified(CHAR_CONDITIONS[2:6], "c")[0],
)

DICT_END = (
    (
        Step(
            "keys",
            "words",
            "sorted({v})",
            ("list the keys in order", "take the sorted keys"),
            ("the sorted keys of {}",),
        ),
    ),
    (
        Step(
            "values",
            "ints",
            "list({v}.values())",
            ("list the values", "take the values"),
            ("the list of values of {}",),
        ),
    ),
    (
        Step(
            "byvalue",
            "words",
            "sorted({v}, key={v}.get)",
            ("list the keys from the lowest to the highest value", "sort the keys by value"),
            ("the keys by ascending value of {}",),
        ),
    ),
    (
        Step(
            "byvaluedown",
            "words",
            "sorted({v}, key={v}.get, reverse=True)",
            ("list the keys from the highest to the lowest value",),
            ("the keys by descending value of {}",),
        ),
    ),
    (
        end(
            "best",
            "max({v}, key={v}.get, default='')",
            ("return the key with the largest value or '' if there is none",),
            ("the key with the largest value in {}",),
        ),
    ),
    (
        end(
            "worst",
            "min({v}, key={v}.get, default='')",
            ("return the key with the smallest value or '' if there is none",),
            ("the key with the smallest value in {}",),
        ),
    ),
    (end("len", "len({v})", ("count the entries",), ("the number of entries of {}",)),),
    (end("sum", "sum({v}.values())", ("add up the values",), ("the sum of the values of {}",)),),
    (
        end(
            "invert",
            "{{n: k for k, n in {v}.items()}}",
            ("swap keys and values", "map each value to its key"),
            ("the inverse of {}",),
        ),
    ),
)

NUMBER_SOURCES = (
    (
        Step(
            "digits",
            "ints",
            "[int(c) for c in str({v})]",
            ("list the digits of n", "split n into its digits"),
            ("the digits of {}",),
        ),
    ),
    (
        Step(
            "upto",
            "ints",
            "list(range(1, {v} + 1))",
            ("list the numbers from 1 to n",),
            ("the numbers from 1 to {}",),
        ),
    ),
    (
        Step(
            "below",
            "ints",
            "list(range({v}))",
            ("list the numbers from 0 up to but without n",),
            ("the numbers from 0 below {}",),
        ),
    ),
    (
        Step(
            "divisors",
            "ints",
            "[x for x in range(1, {v} + 1) if {v} % x == 0]",
            ("list the divisors of n", "find all divisors of n"),
            ("the divisors of {}",),
        ),
    ),
)
