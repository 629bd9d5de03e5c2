"""Dynamic masking: how much of the reflection sequence the student still sees.

Two pure functions. ``mask_rate`` says how far the curriculum has come at an optimizer step;
``visible`` says which tokens of one reflection sequence that leaves to the student.
Source: ReflectionCoder (arXiv 2405.17057), section 3.3, and the numbers of its published code.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from rcjax.blocks import BlockType

# From these rates on the first, second and third type of ``block_order`` are hidden.
BLOCK_THRESHOLDS = (0.0, 0.33, 0.67)


@dataclasses.dataclass(frozen=True)
class Rate:
    """Mask rate against training progress p = min(1, (step + 1) / total_steps).

    With x = clip((p - start) / (end - start), 0, 1) the rate is initial + (final - initial) * f(x), where f(x) is

      linear: x      cosine: (1 - cos(pi x)) / 2      power: x ** power      step: floor(x * steps) / steps
      hold: x, and ``start`` must be above 0: the rate is held at ``initial`` up to there and rises from there on
    """

    shape: str = "linear"
    start: float = 0.0
    end: float = 1.0
    initial: float = 0.0
    final: float = 1.0
    power: float = 2.0
    steps: int = 3

    def __post_init__(self):
        if self.shape not in _SHAPES:
            raise ValueError(f"config.curriculum.rate.shape is {self.shape!r}; expected one of {', '.join(_SHAPES)}")
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(f"config.curriculum.rate: need 0 <= start < end <= 1, got {self.start} and {self.end}")
        if not (0 <= self.initial <= 1 and 0 <= self.final <= 1):
            raise ValueError(
                f"config.curriculum.rate: initial={self.initial}, final={self.final}; need 0 to 1 for both"
            )
        if self.shape == "hold" and self.start == 0:
            raise ValueError("config.curriculum.rate.start is 0, so shape 'hold' would hold nothing; set it above 0")
        if self.power <= 0 or self.steps < 1:
            raise ValueError(
                f"config.curriculum.rate: power={self.power}, steps={self.steps}; need above 0, at least 1"
            )


_SHAPES: dict[str, Callable[[float, Rate], float]] = {
    "linear": lambda x, rate: x,
    "cosine": lambda x, rate: 0.5 * (1.0 - math.cos(math.pi * x)),
    "power": lambda x, rate: x**rate.power,
    "step": lambda x, rate: math.floor(x * rate.steps) / rate.steps,
    "hold": lambda x, rate: x,
}


def mask_rate(step: int, total_steps: int, rate: Rate = Rate()) -> float:
    """Mask rate in [0, 1] of the batch that optimizer step ``step`` (from 0) consumes.

    Computed in Python doubles: the thresholds of ``block`` are compared exactly (33/100 >= 0.33 holds,
    2/3 >= 0.67 does not).
    """
    progress = min(1.0, (step + 1) / total_steps)
    x = (progress - rate.start) / (rate.end - rate.start)
    return rate.initial + (rate.final - rate.initial) * _SHAPES[rate.shape](min(1.0, max(0.0, x)), rate)


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Which curriculum, in which order of block types (read by ``block`` alone), along which rate.

    ``mixture`` draws one of the curricula of that name for every example at every step, each as likely.
    """

    name: str = "block"
    block_order: tuple[BlockType, ...] = (BlockType.TEXT, BlockType.CODE, BlockType.EXECUTION)
    rate: Rate = Rate()
    mixture: tuple[str, ...] = ()

    def __post_init__(self):
        if self.name not in (*CURRICULA, MIXTURE):
            choices = ", ".join((*CURRICULA, MIXTURE))
            raise ValueError(f"config.curriculum.name is {self.name!r}; expected one of {choices}")
        if (self.name == MIXTURE) != bool(self.mixture):
            raise ValueError(
                f"config.curriculum.mixture is {list(self.mixture)} and name is {self.name!r}; give the curricula to "
                "draw from with name 'mixture', and none with another name"
            )
        for name in self.mixture:
            if name not in CURRICULA or name == "none":
                raise ValueError(f"config.curriculum.mixture: {name!r} is none of {', '.join(list(CURRICULA)[1:])}")
        if sorted(self.block_order) != [BlockType.TEXT, BlockType.CODE, BlockType.EXECUTION]:
            names = [getattr(kind, "name", kind) for kind in self.block_order]
            raise ValueError(
                f"config.curriculum.block_order is {names}; expected TEXT, CODE and EXECUTION in some order"
            )


def visible(
    curriculum: Curriculum,
    block_types: Sequence[int],
    block_lengths: Sequence[int],
    rate: float,
    rng: np.random.Generator | np.random.RandomState,
) -> np.ndarray:
    """Which tokens of one reflection sequence of m tokens in k blocks the student sees at rate r.

    Args:
      curriculum: name and block order.
      block_types: [k] BlockType of each block, in order.
      block_lengths: [k] tokens of each block, its marker and end-of-block included.
      rate: mask rate in [0, 1].
      rng: source of the random curricula's draws; consumed by them alone.

    Returns:
      bool [sum(block_lengths)], True where visible.
    """
    name = curriculum.name
    if name == MIXTURE:  # one curriculum alone costs no draw, as in the reference
        count = len(curriculum.mixture)
        name = curriculum.mixture[int(rng.choice(count)) if count > 1 else 0]
    return CURRICULA[name](curriculum, np.asarray(block_types), np.asarray(block_lengths, np.int64), rate, rng)


def none(curriculum, block_types, block_lengths, rate, rng) -> np.ndarray:
    """hidden = {}: nothing (not even the reflection instruction: the views are then equal)."""
    return np.ones(block_lengths.sum(), bool)


def all_hidden(curriculum, block_types, block_lengths, rate, rng) -> np.ndarray:
    """hidden = {1..m} at every rate: reflection self-distillation without dynamic masking."""
    return np.zeros(block_lengths.sum(), bool)


def block(curriculum, block_types, block_lengths, rate, rng) -> np.ndarray:
    """hidden = blocks of type ``block_order[i]`` for all i with r >= BLOCK_THRESHOLDS[i]: the method's own."""
    hidden = [
        kind
        for kind, start in zip(curriculum.block_order, BLOCK_THRESHOLDS, strict=True)
        if start == 0 or rate >= start
    ]
    return np.repeat(~np.isin(block_types, hidden), block_lengths)


def sequential_block(curriculum, block_types, block_lengths, rate, rng) -> np.ndarray:
    """hidden = blocks 1..ceil(k r)."""
    count = len(block_lengths)
    return np.repeat(np.arange(count) >= math.ceil(count * rate), block_lengths)


def random_block(curriculum, block_types, block_lengths, rate, rng) -> np.ndarray:
    """hidden = ceil(k r) of the k blocks, drawn without replacement."""
    count = len(block_lengths)
    keep = np.ones(count, bool)
    keep[rng.choice(count, math.ceil(count * rate), replace=False)] = False
    return np.repeat(keep, block_lengths)


def sequential_token(curriculum, block_types, block_lengths, rate, rng) -> np.ndarray:
    """hidden = tokens 1..ceil(m r)."""
    count = int(block_lengths.sum())
    return np.arange(count) >= math.ceil(count * rate)


def random_token(curriculum, block_types, block_lengths, rate, rng) -> np.ndarray:
    """hidden = ceil(m r) of the m tokens, at shuffled places."""
    count = int(block_lengths.sum())
    pattern = np.arange(count) >= math.ceil(count * rate)
    rng.shuffle(pattern)
    return pattern


MIXTURE = "mixture"
CURRICULA = {
    "none": none,
    "all": all_hidden,
    "block": block,
    "sequential_block": sequential_block,
    "random_block": random_block,
    "sequential_token": sequential_token,
    "random_token": random_token,
}
