"""Which tokens of which view carry cross-entropy and which carry distillation, as data.

An objective is three tables from ``Region`` to weight. ``L = ce_weight * CE + kd_weight * KL`` where CE is
one weighted mean over the labels of both views together (as the reference pools them) and KL the
weighted mean of the divergence between the teacher's and the student's distribution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from rcjax.blocks import Region

Table = Mapping[Region, float]

# What a plain instruction example trains on, and the teacher view of `reference`: everything the assistant says,
# but for execution feedback, which a compiler writes.
SPOKEN: Table = {Region.FRAME: 1.0, Region.TEXT: 1.0, Region.CODE: 1.0, Region.ANSWER: 1.0, Region.END: 1.0}
# The student's labels in the reference: the last assistant turn, execution blocks in it included, EOS not.
ANSWER: Table = {Region.ANSWER: 1.0, Region.ANSWER_EXECUTION: 1.0}


@dataclasses.dataclass(frozen=True)
class Objective:
    """Weights of one training objective.

    Attributes:
      teacher_ce: CE weight of a token of the teacher view by its region (a label belongs to the token predicted).
      student_ce: the same for the student view; a label counts only where the token before it is visible too.
      distill: weight of the divergence by the region of the position whose next-token distribution is compared
        (the reference does not shift these positions, so the prediction made at the last answer token is in).
      ce_weight, kd_weight: 1 and 1 in the reference; 1 - alpha and alpha in the paper's formula.
    """

    name: str
    teacher_ce: Table
    student_ce: Table
    distill: Table
    ce_weight: float = 1.0
    kd_weight: float = 1.0

    @property
    def uses_student(self) -> bool:
        """Whether a student view is needed at all."""
        return bool(self.student_ce) or bool(self.distill)


OBJECTIVES = {
    "reference": Objective("reference", teacher_ce=SPOKEN, student_ce=ANSWER, distill=ANSWER),
    "ce": Objective("ce", teacher_ce=SPOKEN, student_ce={}, distill={}),
    "blockwise": Objective(
        "blockwise",
        teacher_ce={},
        student_ce={Region.ANSWER: 1.0},
        distill={Region.CODE: 1.0, Region.EXECUTION: 1.0},
    ),
}


def make_objective(name: str, alpha: float | None = None) -> Objective:
    """The named objective with the paper's ``L = alpha KL + (1 - alpha) CE``; alpha None keeps weights 1 and 1.

    Raises:
      ValueError: unknown name, or alpha outside of [0, 1].
    """
    if name not in OBJECTIVES:
        raise ValueError(f"config.objective.name is {name!r}; expected one of {', '.join(OBJECTIVES)}")
    if alpha is None:
        return OBJECTIVES[name]
    if not 0 <= alpha <= 1:
        raise ValueError(f"config.objective.alpha is {alpha}; expected 0 to 1, or None for weights 1 and 1")
    return dataclasses.replace(OBJECTIVES[name], ce_weight=1.0 - alpha, kd_weight=alpha)


def weights(table: Table, regions: np.ndarray) -> np.ndarray:
    """Weight of every token: float32 [L] from regions int8 [L]."""
    by_region = np.zeros(len(Region), np.float32)
    for region, weight in table.items():
        by_region[region] = weight
    return by_region[regions]
