"""The vocabulary of the problem families: conditions and element maps with their code and their words.

A condition or a map is written once, for one element, and used by every family that walks over such elements: a
held-out task is then a new combination of pieces that training has seen, never a new piece.
"""

from __future__ import annotations

import dataclasses

CONSTANTS = range(2, 10)
LETTERS = "aeinorst"


@dataclasses.dataclass(frozen=True)
class Condition:
    """A test of one element.

    Attributes:
      key: name, unique among the conditions of an element type.
      code: expression with ``{x}`` for the element.
      one: clauses behind a singular noun ("is even"), all of the same meaning.
      many: the same clauses behind a plural noun ("are even").
      none: their negations behind a plural noun ("are not even").
    """

    key: str
    code: str
    one: tuple[str, ...]
    many: tuple[str, ...]
    none: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Map:
    """A value computed from one element.

    Attributes:
      key: name, unique among the maps of an element type.
      code: expression with ``{x}`` for the element.
      verbs: orders with ``{thing}`` for the singular noun ("square each {thing}").
      nouns: noun phrases with ``{}`` for what is mapped ("the squares of {}"); only prefixes, so that nested
        phrases have one reading.
      values: noun phrases for the value of one element ("its square").
    """

    key: str
    code: str
    verbs: tuple[str, ...]
    nouns: tuple[str, ...]
    values: tuple[str, ...]


def _be(key: str, code: str, *adjectives: str) -> Condition:
    return Condition(
        key,
        code,
        tuple(f"is {words}" for words in adjectives),
        tuple(f"are {words}" for words in adjectives),
        tuple(f"are not {words}" for words in adjectives),
    )


def _do(key: str, code: str, *verbs: tuple[str, str, str]) -> Condition:
    """``verbs``: (singular, plural, rest), for example ("starts", "start", "with 'a'")."""
    return Condition(
        key,
        code,
        tuple(f"{one} {rest}" for one, _, rest in verbs),
        tuple(f"{many} {rest}" for _, many, rest in verbs),
        tuple(f"do not {many} {rest}" for _, many, rest in verbs),
    )


# Groups of alternatives: a draw picks the group first, so that a piece with many constants does not crowd out one
# that has none.
INT_CONDITIONS: tuple[tuple[Condition, ...], ...] = (
    (_be("even", "{x} % 2 == 0", "even"),),
    (_be("odd", "{x} % 2 == 1", "odd"),),
    (_be("positive", "{x} > 0", "positive", "above zero"),),
    (_be("negative", "{x} < 0", "negative", "below zero"),),
    tuple(_be(f"gt{c}", f"{{x}} > {c}", f"greater than {c}", f"above {c}") for c in CONSTANTS),
    tuple(_be(f"lt{c}", f"{{x}} < {c}", f"less than {c}", f"below {c}") for c in CONSTANTS),
    tuple(_be(f"ge{c}", f"{{x}} >= {c}", f"at least {c}", f"{c} or more") for c in CONSTANTS),
    tuple(_be(f"le{c}", f"{{x}} <= {c}", f"at most {c}", f"{c} or less") for c in CONSTANTS),
    tuple(_be(f"div{c}", f"{{x}} % {c} == 0", f"divisible by {c}", f"evenly divisible by {c}") for c in (3, 4, 5)),
    tuple(_be(f"ndiv{c}", f"{{x}} % {c} != 0", f"indivisible by {c}") for c in (3, 4, 5)),
    tuple(_be(f"ne{c}", f"{{x}} != {c}", f"different from {c}", f"unequal to {c}") for c in CONSTANTS),
)

INT_MAPS: tuple[tuple[Map, ...], ...] = (
    (
        Map(
            "square",
            "{x} * {x}",
            ("square each {thing}", "replace each {thing} by its square"),
            ("the squares of {}", "the squared values of {}"),
            ("its square",),
        ),
    ),
    (
        Map(
            "cube",
            "{x} ** 3",
            ("cube each {thing}", "replace each {thing} by its cube"),
            ("the cubes of {}", "the cubed values of {}"),
            ("its cube",),
        ),
    ),
    (
        Map(
            "neg",
            "-{x}",
            ("negate each {thing}", "flip the sign of each {thing}"),
            ("the negatives of {}", "the opposites of {}"),
            ("its negative",),
        ),
    ),
    (
        Map(
            "abs",
            "abs({x})",
            ("take the absolute value of each {thing}", "replace each {thing} by its absolute value"),
            ("the absolute values of {}", "the magnitudes of {}"),
            ("its absolute value",),
        ),
    ),
    tuple(
        Map(
            f"mul{c}",
            f"{{x}} * {c}",
            (f"multiply each {{thing}} by {c}", f"scale each {{thing}} by {c}"),
            (f"{c} times each of {{}}", f"the {c}-fold values of {{}}"),
            (f"{c} times it",),
        )
        for c in range(2, 7)
    ),
    tuple(
        Map(
            f"add{c}",
            f"{{x}} + {c}",
            (f"add {c} to each {{thing}}", f"increase each {{thing}} by {c}"),
            (f"{c} plus each of {{}}", f"{c} more than each of {{}}"),
            (f"{c} more than it",),
        )
        for c in range(1, 10)
    ),
    tuple(
        Map(
            f"sub{c}",
            f"{{x}} - {c}",
            (f"subtract {c} from each {{thing}}", f"decrease each {{thing}} by {c}"),
            (f"{c} less than each of {{}}",),
            (f"{c} less than it",),
        )
        for c in range(1, 10)
    ),
    tuple(
        Map(
            f"mod{c}",
            f"{{x}} % {c}",
            (f"take each {{thing}} modulo {c}", f"replace each {{thing}} by its remainder modulo {c}"),
            (f"the remainders modulo {c} of {{}}",),
            (f"its remainder modulo {c}",),
        )
        for c in range(3, 8)
    ),
    tuple(
        Map(
            f"quot{c}",
            f"{{x}} // {c}",
            (f"divide each {{thing}} by {c} rounding down", f"replace each {{thing}} by its integer quotient by {c}"),
            (f"the integer quotients by {c} of {{}}",),
            (f"its integer quotient by {c}",),
        )
        for c in (2, 3, 4)
    ),
    tuple(
        Map(
            f"cap{c}",
            f"min({{x}}, {c})",
            (f"cap each {{thing}} at {c}", f"limit each {{thing}} to at most {c}"),
            (f"the values capped at {c} of {{}}",),
            (f"its value capped at {c}",),
        )
        for c in CONSTANTS
    ),
    tuple(
        Map(
            f"floor{c}",
            f"max({{x}}, {c})",
            (f"raise each {{thing}} to at least {c}", f"lift each {{thing}} below {c} up to {c}"),
            (f"the values raised to at least {c} of {{}}",),
            (f"its value raised to at least {c}",),
        )
        for c in CONSTANTS
    ),
)

WORD_CONDITIONS: tuple[tuple[Condition, ...], ...] = (
    tuple(
        _be(f"longer{c}", f"len({{x}}) > {c}", f"longer than {c} letters", f"of more than {c} letters")
        for c in range(2, 6)
    ),
    tuple(
        _be(f"shorter{c}", f"len({{x}}) < {c}", f"shorter than {c} letters", f"of fewer than {c} letters")
        for c in range(3, 7)
    ),
    (
        _do(
            "evenlen",
            "len({x}) % 2 == 0",
            ("has", "have", "an even length"),
            ("has", "have", "an even number of letters"),
        ),
    ),
    tuple(
        _do(f"start{c}", f"{{x}}[0] == '{c}'", ("starts", "start", f"with '{c}'"), ("begins", "begin", f"with '{c}'"))
        for c in LETTERS
    ),
    tuple(_do(f"end{c}", f"{{x}}[-1] == '{c}'", ("ends", "end", f"with '{c}'")) for c in LETTERS),
    tuple(
        _do(
            f"has{c}",
            f"'{c}' in {{x}}",
            ("contains", "contain", f"'{c}'"),
            ("includes", "include", f"the letter '{c}'"),
        )
        for c in LETTERS
    ),
    tuple(
        _do(f"lacks{c}", f"'{c}' not in {{x}}", ("lacks", "lack", f"'{c}'"), ("lacks", "lack", f"the letter '{c}'"))
        for c in LETTERS
    ),
)

WORD_MAPS: tuple[tuple[Map, ...], ...] = (
    (
        Map(
            "upper",
            "{x}.upper()",
            ("turn each {thing} into upper case", "uppercase each {thing}"),
            ("the uppercase forms of {}",),
            ("it in upper case",),
        ),
    ),
    (
        Map(
            "mirror",
            "{x}[::-1]",
            ("reverse each {thing}", "spell each {thing} backwards"),
            ("the backward spellings of {}",),
            ("it spelled backwards",),
        ),
    ),
    (
        Map(
            "initial",
            "{x}[0]",
            ("replace each {thing} by its first letter", "take the first letter of each {thing}"),
            ("the first letters of {}", "the initials of {}"),
            ("its first letter",),
        ),
    ),
    (
        Map(
            "final",
            "{x}[-1]",
            ("replace each {thing} by its last letter", "take the last letter of each {thing}"),
            ("the last letters of {}",),
            ("its last letter",),
        ),
    ),
    (
        Map(
            "twice",
            "{x} + {x}",
            ("write each {thing} twice", "repeat each {thing} twice"),
            ("the doubled forms of {}",),
            ("it written twice",),
        ),
    ),
    (
        Map(
            "title",
            "{x}.capitalize()",
            ("capitalize each {thing}",),
            ("the capitalized forms of {}",),
            ("it capitalized",),
        ),
    ),
    tuple(
        Map(
            f"append{c}",
            f"{{x}} + '{c}'",
            (f"append '{c}' to each {{thing}}", f"put '{c}' behind each {{thing}}"),
            (f"the forms with '{c}' appended of {{}}",),
            (f"it with '{c}' appended",),
        )
        for c in "!?" + LETTERS
    ),
    tuple(
        Map(
            f"prepend{c}",
            f"'{c}' + {{x}}",
            (f"prepend '{c}' to each {{thing}}", f"put '{c}' before each {{thing}}"),
            (f"the forms with '{c}' prepended of {{}}",),
            (f"it with '{c}' prepended",),
        )
        for c in "#@" + LETTERS
    ),
    tuple(
        Map(
            f"strip{c}",
            f"{{x}}.replace('{c}', '')",
            (f"remove every '{c}' from each {{thing}}", f"delete all '{c}' in each {{thing}}"),
            (f"the forms without '{c}' of {{}}",),
            (f"it without '{c}'",),
        )
        for c in LETTERS
    ),
    tuple(
        Map(
            f"head{c}",
            f"{{x}}[:{c}]",
            (f"cut each {{thing}} to its first {c} letters", f"keep the first {c} letters of each {{thing}}"),
            (f"the first {c} letters of each of {{}}",),
            (f"its first {c} letters",),
        )
        for c in (2, 3, 4)
    ),
    tuple(
        Map(
            f"tail{c}",
            f"{{x}}[{c}:]",
            (f"cut the first {c} letters off each {{thing}}",),
            (f"what follows the first {c} letters of each of {{}}",),
            (f"it without its first {c} letters",),
        )
        for c in (2, 3)
    ),
)

WORD_TO_INT: tuple[tuple[Map, ...], ...] = (
    (
        Map(
            "len",
            "len({x})",
            ("replace each {thing} by its length", "take the length of each {thing}"),
            ("the lengths of {}",),
            ("its length",),
        ),
    ),
    tuple(
        Map(
            f"count{c}",
            f"{{x}}.count('{c}')",
            (f"count the '{c}' in each {{thing}}", f"replace each {{thing}} by how often it contains '{c}'"),
            (f"the counts of '{c}' in each of {{}}",),
            (f"its count of '{c}'",),
        )
        for c in LETTERS
    ),
)

CHAR_CONDITIONS: tuple[tuple[Condition, ...], ...] = (
    (_be("vowel", "{x} in 'aeiou'", "vowels"),),
    (_be("novowel", "{x} not in 'aeiou'", "other than vowels"),),
    (_be("digit", "{x}.isdigit()", "digits"),),
    (_be("letter", "{x}.isalpha()", "letters"),),
    (_be("capital", "{x}.isupper()", "capital letters", "in upper case"),),
    (_be("small", "{x}.islower()", "small letters", "in lower case"),),
    tuple(_be(f"not{c}", f"{{x}} != '{c}'", f"different from '{c}'", f"unequal to '{c}'") for c in LETTERS),
    tuple(_be(f"after{c}", f"{{x}} > '{c}'", f"after '{c}' in order", f"greater than '{c}'") for c in "ehmr"),
    tuple(_be(f"before{c}", f"{{x}} < '{c}'", f"before '{c}' in order", f"less than '{c}'") for c in "ehmr"),
)
