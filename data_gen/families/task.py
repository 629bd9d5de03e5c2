"""What a family draws: one task before phrasings and tests are chosen."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

# Parameters of ``solve`` by name: what they hold says which inputs fit (``inputs.py``).
Phrase = Callable[[random.Random, int], str]


@dataclasses.dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
      key: the composition, phrasing excluded; unique among all families.
      family: name of the family.
      params: parameter names of ``solve`` in order (keys of ``inputs.SAMPLERS``).
      solution: reference code.
      phrase: gives phrasing number i with the synonyms that the generator picks; different numbers use
        different sentence forms.
      smaller: solutions of the same task with one piece left out. Where one behaves the same, the piece does nothing
        and the task is dropped.
    """

    key: str
    family: str
    params: tuple[str, ...]
    solution: str
    phrase: Phrase
    smaller: tuple[str, ...] = ()


def capital(text: str) -> str:
    """``text`` with its first character in upper case."""
    return text[:1].upper() + text[1:]


def one_of(rng: random.Random, groups: tuple[tuple, ...]):
    """A piece: first a group, then a member, so that pieces with many constants do not crowd out the others."""
    return rng.choice(rng.choice(groups))
