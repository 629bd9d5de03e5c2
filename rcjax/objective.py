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
      divergence: between the teacher's and the student's distribution, one of ``DIVERGENCES``.
      beta: of the generalized Jensen-Shannon divergence.
      temperature: logits of both are divided by it, and the divergence is multiplied by its square.
      curriculum: the one that belongs to the objective; None: any.
    """

    name: str
    teacher_ce: Table
    student_ce: Table
    distill: Table
    ce_weight: float = 1.0
    kd_weight: float = 1.0
    divergence: str = "forward_kl"
    beta: float = 0.5
    temperature: float = 1.0
    curriculum: str | None = None

    @property
    def uses_student(self) -> bool:
        """Whether a student view is needed at all."""
        return bool(self.student_ce) or bool(self.distill)


OBJECTIVES = {
    "reference": Objective("reference", teacher_ce=SPOKEN, student_ce=ANSWER, distill=ANSWER),
    "self_distill": Objective("self_distill", teacher_ce=SPOKEN, student_ce=ANSWER, distill=ANSWER, curriculum="all"),
    "ce": Objective("ce", teacher_ce=SPOKEN, student_ce={}, distill={}),
    "blockwise": Objective(
        "blockwise",
        teacher_ce={},
        student_ce={Region.ANSWER: 1.0},
        distill={Region.CODE: 1.0, Region.EXECUTION: 1.0},
    ),
}
TABLE = Objective("table", teacher_ce={}, student_ce={}, distill={})  # all of it is given
TABLES = ("teacher_ce", "student_ce", "distill")
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")  # computed in rcjax/losses.py


def make_objective(
    name: str,
    alpha: float | None = None,
    *,
    ce_weight: float | None = None,
    kd_weight: float | None = None,
    divergence: str = "forward_kl",
    beta: float = 0.5,
    temperature: float = 1.0,
    **tables: Mapping[str, float] | None,
) -> Objective:
    """The named objective, with what is given in place of its own.

    Args:
      name: of ``OBJECTIVES``, or ``table``, whose tables are those given here.
      alpha: the paper's ``L = alpha KL + (1 - alpha) CE``; None keeps weights 1 and 1.
      ce_weight, kd_weight: instead of ``alpha``, any two.
      divergence, beta, temperature: see ``Objective``.
      **tables: ``teacher_ce``, ``student_ce``, ``distill``: {name of a Region: weight}.

    Raises:
      ValueError: an unknown name, region or divergence, a weight below 0, alpha or beta out of range, or a ``table``
        that is empty.
    """
    at = "config.objective"
    base = OBJECTIVES.get(name, TABLE if name == TABLE.name else None)
    if base is None:
        raise ValueError(f"{at}.name is {name!r}; expected one of {', '.join((*OBJECTIVES, TABLE.name))}")
    changes: dict[str, object] = {key: _table(key, table) for key, table in tables.items() if table is not None}
    if base is TABLE and not any(changes.values()):
        raise ValueError(f"{at}.name is 'table', but {', '.join(TABLES)} are empty; give at least one of them")
    if alpha is not None and (ce_weight is not None or kd_weight is not None):
        raise ValueError(f"{at}: alpha={alpha} already says what ce_weight and kd_weight are; give either")
    if alpha is not None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"{at}.alpha is {alpha}; expected 0 to 1, or None for weights 1 and 1")
        ce_weight, kd_weight = 1.0 - alpha, alpha
    for key, weight in (("ce_weight", ce_weight), ("kd_weight", kd_weight)):
        if weight is not None:
            if not weight >= 0:
                raise ValueError(f"{at}.{key} is {weight}; expected at least 0")
            changes[key] = float(weight)
    if divergence not in DIVERGENCES:
        raise ValueError(f"{at}.divergence is {divergence!r}; expected one of {', '.join(DIVERGENCES)}")
    if not 0 < beta < 1:
        raise ValueError(f"{at}.beta is {beta}; expected above 0 and below 1")
    if not temperature > 0:
        raise ValueError(f"{at}.temperature is {temperature}; expected above 0")
    return dataclasses.replace(base, divergence=divergence, beta=float(beta), temperature=float(temperature), **changes)


def _table(field: str, table: Mapping[str, float]) -> Table:
    for region, weight in table.items():
        if region not in Region.__members__:
            names = ", ".join(Region.__members__)
            raise ValueError(f"config.objective.{field}: unknown region {region!r}; expected some of {names}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
            raise ValueError(f"config.objective.{field}.{region} is {weight!r}; expected a number of at least 0")
    return {Region[region]: float(weight) for region, weight in table.items() if weight}


def weights(table: Table, regions: np.ndarray) -> np.ndarray:
    """Weight of every token: float32 [L] from regions int8 [L]."""
    by_region = np.zeros(len(Region), np.float32)
    for region, weight in table.items():
        by_region[region] = weight
    return by_region[regions]
