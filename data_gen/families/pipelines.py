"""Families of pipelines: filter, map, order and reduce steps behind each other.

A pipeline's code has one line a step, but a filter followed by a map becomes one comprehension, and the last step
stands in the return statement. So the order of steps shows in the shape of the code:

    filter, map          ys = [x * x for x in xs if x % 2 == 0]
    map, filter          ys = [x * x for x in xs]
                         ys = [x for x in ys if x % 2 == 0]      (named zs)

Phrasings are of two forms: orders in sequence ("keep ..., square ..., return their sum") and one nested noun phrase,
where the steps stand in reverse ("the sum of the squares of those that are even among xs").
"""

from __future__ import annotations

import dataclasses
import random

from data_gen.families import steps as S
from data_gen.families import text_steps as T
from data_gen.families.inputs import SAMPLERS
from data_gen.families.pieces import (
    CHAR_CONDITIONS,
    INT_CONDITIONS,
    INT_MAPS,
    WORD_CONDITIONS,
    WORD_MAPS,
    WORD_TO_INT,
    Condition,
    Map,
)
from data_gen.families.task import Task, one_of

ELEMENT = {"ints": "x", "words": "w", "text": "c"}
THINGS = {"ints": ("number", "numbers"), "words": ("word", "words"), "text": ("character", "characters")}
DESCRIPTIONS = {"xs": "a list of numbers", "words": "a list", "s": "a text", "n": "a number", "m": "a number"}
LATER_NAMES = {
    "ints": ("ys", "zs", "us", "vs"),
    "words": ("ys", "zs", "us", "vs"),
    "text": ("t", "u", "v", "w"),
    "dict": ("e", "f", "g", "h"),
}


@dataclasses.dataclass(frozen=True)
class Filter:
    """Keeps the elements (for dictionaries: the entries) for which the condition holds."""

    condition: Condition
    on: str = "element"  # or "key", "value" of a dictionary

    @property
    def key(self) -> str:
        return f"keep-{self.condition.key}" if self.on == "element" else f"keep-{self.on}-{self.condition.key}"


@dataclasses.dataclass(frozen=True)
class Apply:
    """Maps each element (for dictionaries: each value)."""

    map: Map
    gives: str

    @property
    def key(self) -> str:
        return self.map.key


Piece = Filter | Apply | S.Step


def gives(piece: Piece, takes: str) -> str:
    """Type of the value behind ``piece``."""
    return takes if isinstance(piece, Filter) else piece.gives


def _comprehension(kind: str, value: str, conditions: list[Condition], mapped: Map | None) -> str:
    element = ELEMENT[kind]
    result = mapped.code.format(x=element) if mapped else element
    test = " and ".join(condition.code.format(x=element) for condition in conditions)
    body = f"{result} for {element} in {value}" + (f" if {test}" if test else "")
    return f"''.join([{body}])" if kind == "text" else f"[{body}]"


def _dict_comprehension(value: str, filters: list[Filter], mapped: Map | None) -> str:
    result = mapped.code.format(x="n") if mapped else "n"
    test = " and ".join(f.condition.code.format(x="k" if f.on == "key" else "n") for f in filters)
    return f"{{k: {result} for k, n in {value}.items()" + (f" if {test}" if test else "") + "}"


def render(param: str, kind: str, pieces: tuple[Piece, ...]) -> str:
    """Code of the pipeline on parameter ``param`` of type ``kind``."""
    expressions: list[tuple[str, str]] = []  # (expression with {v}, type of the result)
    index = 0
    while index < len(pieces):
        piece = pieces[index]
        filters: list[Filter] = []
        while isinstance(piece, Filter):
            filters.append(piece)
            index += 1
            if index == len(pieces):
                break
            piece = pieces[index]
        mapped = None
        if index < len(pieces) and isinstance(piece, Apply):
            mapped = piece.map
            index += 1
        if filters or mapped:
            if kind == "dict":
                code = _dict_comprehension("\0", filters, mapped)
            else:
                code = _comprehension(kind, "\0", [f.condition for f in filters], mapped)
            kind = piece.gives if mapped else kind
        else:
            code = piece.code.format(v="\0")
            kind = piece.gives
            index += 1
        expressions.append((code, kind))
    lines = [f"def solve({param}):"]
    value = param
    for number, (code, kind) in enumerate(expressions):
        if number == len(expressions) - 1:
            lines.append(f"    return {code.replace(chr(0), value)}")
        else:
            name = LATER_NAMES[kind][number]
            lines.append(f"    {name} = {code.replace(chr(0), value)}")
            value = name
    return "\n".join(lines) + "\n"


def _order(piece: Piece, kind: str, rng: random.Random) -> str:
    """``piece`` as an order."""
    thing, things = THINGS.get(kind, ("entry", "entries"))
    if isinstance(piece, Filter):
        condition = piece.condition
        if piece.on != "element":
            clause = rng.choice(condition.one)
            return rng.choice(("keep the entries whose {} {}", "keep only entries whose {} {}")).format(
                piece.on, clause
            )
        if rng.random() < 0.3:
            return rng.choice(("drop the {} that {}", "remove the {} that {}")).format(
                things, rng.choice(condition.none)
            )
        forms = ("keep the {} that {}", "keep only the {} that {}", "select the {} that {}")
        return rng.choice(forms).format(things, rng.choice(condition.many))
    verbs = piece.map.verbs if isinstance(piece, Apply) else piece.verbs
    if kind == "dict" and isinstance(piece, Apply):
        thing = "value"
    return rng.choice(verbs).format(thing=thing, things=things)


def _noun(piece: Piece, inner: str, rng: random.Random) -> str:
    """``piece`` applied to the noun phrase ``inner``."""
    if isinstance(piece, Filter):
        if piece.on != "element":
            return f"the entries whose {piece.on} {rng.choice(piece.condition.one)} in {inner}"
        return rng.choice(("those that {} among {}", "the ones that {} among {}")).format(
            rng.choice(piece.condition.many), inner
        )
    if isinstance(piece, Apply):
        return rng.choice(piece.map.nouns).format(inner)
    return rng.choice(piece.nouns).format(inner)


def _phrase(param: str, kind: str, pieces: tuple[Piece, ...]):
    def phrase(rng: random.Random, number: int) -> str:
        given = rng.choice(SAMPLERS[param][0])
        name = "n" if param == "m" else param
        if number % 2 and kind != "dict":
            noun = name
            if kind == "text":
                noun = "the text s"
            for piece in pieces:
                noun = _noun(piece, noun, rng)
            return rng.choice(
                (
                    f"Return {noun}, where {name} is {DESCRIPTIONS[param]}.",
                    f"Write a function that returns {noun} for {given}.",
                    f"For {given}, compute {noun}.",
                )
            )
        orders, at = [], kind
        for piece in pieces:
            orders.append(_order(piece, at, rng))
            at = gives(piece, at)
        if at != "end" and not orders[-1].startswith("return"):
            orders.append("return the result")
        if len(orders) == 1:
            return f"Given {given}, {orders[0]}."
        if rng.random() < 0.5:
            return f"Given {given}, {', '.join(orders[:-1])}, and {orders[-1]}."
        middle = "".join(f", then {order}" for order in orders[1:-1])
        return f"Take {given}. First {orders[0]}{middle}. Finally {orders[-1]}."

    return phrase


def _draw_piece(kind: str, rng: random.Random, last: bool) -> Piece:
    roll = rng.random()
    if kind == "ints":
        if last and roll < 0.6:
            return one_of(rng, S.INT_END)
        if roll < 0.75:
            return Filter(one_of(rng, INT_CONDITIONS)) if rng.random() < 0.5 else Apply(one_of(rng, INT_MAPS), "ints")
        return one_of(rng, S.INT_ORDER)
    if kind == "words":
        if last and roll < 0.5:
            return one_of(rng, S.WORD_END)
        if roll < 0.65:
            return Filter(one_of(rng, WORD_CONDITIONS))
        if roll < 0.8:
            return Apply(one_of(rng, WORD_MAPS), "words")
        return Apply(one_of(rng, WORD_TO_INT), "ints") if roll < 0.85 else one_of(rng, S.WORD_ORDER)
    if kind == "text":
        if last and roll < 0.5:
            return one_of(rng, T.TEXT_END)
        return Filter(one_of(rng, CHAR_CONDITIONS)) if roll < 0.65 else one_of(rng, T.TEXT_STEPS)
    if last and roll < 0.6:
        return one_of(rng, T.DICT_END)
    if roll < 0.7:
        return Filter(one_of(rng, INT_CONDITIONS), "value")
    if roll < 0.8:
        return Filter(one_of(rng, WORD_CONDITIONS), "key")
    return Apply(one_of(rng, INT_MAPS), "dict") if roll < 0.93 else one_of(rng, T.DICT_END[:4])


def _smaller(param: str, kind: str, pieces: tuple[Piece, ...]) -> tuple[str, ...]:
    """Codes of the pipeline with one piece left out, where the types still fit."""
    codes = []
    for skip in range(len(pieces)):
        before = kind
        for piece in pieces[:skip]:
            before = gives(piece, before)
        rest = pieces[:skip] + pieces[skip + 1 :]
        if rest and gives(pieces[skip], before) in (before, "end"):
            codes.append(render(param, kind, rest))
    return tuple(codes)


def _draw(family: str, param: str, kind: str, rng: random.Random) -> Task:
    if kind == "number":
        source = one_of(rng, T.NUMBER_SOURCES)
        pieces: list[Piece] = [source]
        param = "n" if source.key == "digits" else "m"
        at, length = "ints", rng.choice((2, 2, 3))
    else:
        pieces, at, length = [], kind, rng.choice((2, 2, 3, 3))
    while len(pieces) < length + (kind == "number") and at != "end":
        piece = _draw_piece(at, rng, last=len(pieces) >= length - 1)
        pieces.append(piece)
        at = gives(piece, at)
    chain = tuple(pieces)
    key = "/".join([family, *(piece.key for piece in chain)])
    name = "n" if param == "m" else param
    return Task(
        key=key,
        family=family,
        params=(param,),
        solution=render(name, kind, chain),
        phrase=_phrase(param, kind, chain),
        smaller=_smaller(name, kind, chain),
    )


def draw_lists(rng: random.Random) -> Task:
    """Lists of numbers."""
    return _draw("lists", "xs", "ints", rng)


def draw_words(rng: random.Random) -> Task:
    """Lists of words."""
    return _draw("words", "words", "words", rng)


def draw_texts(rng: random.Random) -> Task:
    """Single strings."""
    return _draw("texts", "s", "text", rng)


def draw_dicts(rng: random.Random) -> Task:
    """Dictionaries from words to numbers."""
    return _draw("dicts", "d", "dict", rng)


def draw_numbers(rng: random.Random) -> Task:
    """Digits, ranges and divisors of one number."""
    return _draw("numbers", "n", "number", rng)
