"""One optimizer step's examples as our trainer and as its peers want them: same tokens, same masks, same weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from rcjax import objective as objectives
from rcjax.blocks import Example
from rcjax.curriculum import Curriculum, mask_rate
from rcjax.data.loader import BatchSettings, StepBatch, StepSource
from rcjax.objective import make_objective
from rcjax.views import student_mask


@dataclasses.dataclass(frozen=True)
class Dense:
    """A microbatch as the reference lays it down: full length, right padding. Arrays [b, L].

    Attributes:
      tokens, real: int32; bool, False in padding.
      seen: bool, what the student sees.
      teacher_ce, student_ce: float32 weights of the label at this position (its logits lie one before).
      kd: float32 weights of the divergence at this position.
    """

    tokens: np.ndarray
    real: np.ndarray
    seen: np.ndarray
    teacher_ce: np.ndarray
    student_ce: np.ndarray
    kd: np.ndarray


def our_step(
    examples: Sequence[Example], curriculum: str, step: int, steps: int, row_length: int, rows: int = 1, cuts: int = 8
) -> StepBatch:
    """All ``examples`` in one optimizer step, at the mask rate of ``step`` of ``steps``."""
    settings = BatchSettings(
        objective=make_objective("reference"),
        curriculum=Curriculum(curriculum),
        total_steps=steps,
        batch_size=len(examples),
        row_length=row_length,
        rows_per_microbatch=rows,
        normalisation="example",
        seed=0,
        cuts=cuts,
    )
    return StepSource([list(examples)], [1], settings)[step]


def dense_step(
    examples: Sequence[Example], curriculum: str, step: int, steps: int, microbatch: int, multiple: int = 1
) -> list[Dense]:
    """The same examples in microbatches of neighbours in length, which is what the reference's sampler aims at.

    Weights are normalised over the step, so that the sum over microbatches is our loss.

    Args:
      multiple: microbatches are padded to a multiple of so many tokens.
    """
    rate = mask_rate(step, steps)
    objective = make_objective("reference")
    ordered = sorted(examples, key=len, reverse=True)
    batches = []
    for first in range(0, len(ordered), microbatch):
        chosen = ordered[first : first + microbatch]
        length = -(-max(map(len, chosen)) // multiple) * multiple
        arrays = {field.name: np.zeros((len(chosen), length), np.float32) for field in dataclasses.fields(Dense)}
        for row, example in enumerate(chosen):
            size = len(example)
            mask = student_mask(example, Curriculum(curriculum), rate, np.random.default_rng(0))
            teacher = objectives.weights(objective.teacher_ce, example.regions)
            student = objectives.weights(objective.student_ce, example.regions)
            kd = objectives.weights(objective.distill, example.regions)
            values = dict(tokens=example.tokens, real=1, seen=mask)
            labels = teacher.sum() + student.sum()
            values |= dict(teacher_ce=teacher / labels, student_ce=student / labels, kd=kd / kd.sum())
            for name, value in values.items():
                arrays[name][row, :size] = value
        for name in ("teacher_ce", "student_ce", "kd"):
            arrays[name] /= len(examples)
        for name, dtype in (("tokens", np.int32), ("real", bool), ("seen", bool)):
            arrays[name] = arrays[name].astype(dtype)
        batches.append(Dense(**arrays))
    return batches
