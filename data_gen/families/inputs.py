"""Inputs for ``solve`` by parameter name: small values, since every test costs tokens in the traces."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

_NAMES = """
    ant ape art bee cat dog ear eel egg fan fig hen ice ink jar kite lion moon nest nose oat onion open orange oven
    pear pine rain rat red rose salt sea seat sone stone sun tea ten tiger train tree unit van water wine zoo
"""
WORDS = tuple(_NAMES.split())


def _number(rng: random.Random) -> int:
    return rng.randint(-9, 12) if rng.random() < 0.75 else rng.choice((0, 1, 2, 3, 4, 5, 15, 20))


def _ints(rng: random.Random) -> list[int]:
    values = [_number(rng) for _ in range(rng.randint(3, 6))]
    if rng.random() < 0.4:
        values[rng.randrange(len(values))] = rng.choice(values)
    return values


def _words(rng: random.Random) -> list[str]:
    words = [rng.choice(WORDS) for _ in range(rng.randint(2, 5))]
    if rng.random() < 0.2:
        words.append(rng.choice(words))
    return words


def _text(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.4:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 3)))
    if kind < 0.6:
        return rng.choice(WORDS).capitalize() + str(rng.randint(0, 9)) + rng.choice(WORDS).upper()[:2]
    if kind < 0.75:
        half = "".join(rng.choice("aenost") for _ in range(rng.randint(1, 3)))
        return half + half[::-1]
    return "".join(rng.choice("aaeinorstAENT") for _ in range(rng.randint(3, 7)))


def _n(rng: random.Random) -> int:
    return rng.choice((rng.randint(2, 12), rng.randint(10, 30), rng.randint(100, 999), rng.randint(1000, 9999)))


def _small_n(rng: random.Random) -> int:
    return rng.randint(3, 24)


def _dict(rng: random.Random) -> dict[str, int]:
    size = rng.randint(2, 4)
    values = rng.sample(range(-3, 13), size)  # distinct: order by value has one reading
    return dict(zip(rng.sample(WORDS, size), values, strict=True))


# name of the parameter -> (what a prompt calls it, draws one input, edge cases)
SAMPLERS: dict[str, tuple[tuple[str, ...], Callable[[random.Random], Any], tuple[Any, ...]]] = {
    "xs": (("a list of numbers xs", "the list of integers xs"), _ints, ([], [4])),
    "ys": (("a list of numbers ys", "the list of integers ys"), _ints, ([], [4])),
    "words": (("a list of words", "the list words"), _words, ([], ["tea"])),
    "s": (("a text s", "the string s"), _text, ("", "a")),
    "n": (("a number n", "the integer n"), _n, (1, 7)),
    "m": (("a number n", "the integer n"), _small_n, (1, 2)),
    "d": (("a dictionary d from words to numbers", "the dictionary d of numbers by word"), _dict, ({}, {"tea": 3})),
}


def draw_inputs(params: tuple[str, ...], rng: random.Random, count: int) -> list[tuple[Any, ...]]:
    """``count`` argument tuples: edge cases first, then random ones."""
    edges = [SAMPLERS[name][2] for name in params]
    inputs = [tuple(choices[index] for choices in edges) for index in range(min(len(c) for c in edges))]
    while len(inputs) < count:
        inputs.append(tuple(SAMPLERS[name][1](rng) for name in params))
    return inputs
