"""The teacher's and the student's view of one example, cut out rather than masked.

A hidden token that no visible token attends to and that carries no loss need not exist. So a view holds
visible tokens alone, with the positions they have in the full example; causal attention inside a view is then
exactly the masked computation. The last token (EOS) predicts nothing and is cut from both views too.

Labels come in two groups, since that is how the loss projects them (``rcjax/losses.py``):
*pairs* are positions that both views hold and where the student carries loss, *singles* are positions of the
teacher view whose label carries cross-entropy and that have no partner.

Where the teacher is another network, it reads a view of its own (``taught_by``), which ends behind the last position
that is distilled; the trained network reads the teacher view only for the cross-entropy in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from rcjax import objective as objectives
from rcjax.blocks import REFLECTION, Example
from rcjax.curriculum import Curriculum, visible
from rcjax.objective import Objective


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """What the model computes of one example in one pass: n slots."""

    tokens: np.ndarray  # int32 [n]
    positions: np.ndarray  # int32 [n], those of the full example

    def __len__(self) -> int:
        return len(self.tokens)


@dataclasses.dataclass(frozen=True, eq=False)
class ExampleViews:
    """Both views and their labels. Slots count from 0 in each view; weights are the table's, not normalised.

    ``teacher`` and ``student`` are read by the network that is trained, ``taught_by`` by a teacher that is another.
    ``single_*`` [K]: slot of the teacher view, the token it has to predict, its CE weight.
    ``pair_*`` [P]: slot in the teacher view (or in ``taught_by``), slot in the student view, token to predict, CE
    weight in either view, weight of the divergence.
    """

    teacher: View | None
    student: View | None
    taught_by: View | None
    single_slots: np.ndarray
    single_targets: np.ndarray
    single_ce: np.ndarray
    pair_teacher_slots: np.ndarray
    pair_student_slots: np.ndarray
    pair_targets: np.ndarray
    pair_teacher_ce: np.ndarray
    pair_student_ce: np.ndarray
    pair_kd: np.ndarray

    @property
    def slots(self) -> int:
        """Row slots that the example takes: both views lie in one row, and so does what another network reads."""
        own = sum(len(view) for view in (self.teacher, self.student) if view is not None)
        return max(own, len(self.taught_by) if self.taught_by is not None else 0)

    @property
    def computed_tokens(self) -> int:
        """Tokens that some network reads."""
        return sum(len(view) for view in (self.teacher, self.student, self.taught_by) if view is not None)

    @property
    def ce_weight(self) -> float:
        """Sum of CE weights of both views: the denominator of the example's CE."""
        return float(self.single_ce.sum() + self.pair_teacher_ce.sum() + self.pair_student_ce.sum())

    @property
    def kd_weight(self) -> float:
        """Sum of divergence weights: the denominator of the example's KL."""
        return float(self.pair_kd.sum())


def blocks_of_reflection(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """(types [k], lengths [k]) of the blocks of the reflection sequence."""
    start, stop = example.reflection
    ids = example.block_ids[start:stop]
    firsts = np.flatnonzero(np.diff(ids, prepend=-2))
    return example.block_types[start:stop][firsts], np.diff(firsts, append=len(ids))


def student_mask(
    example: Example, curriculum: Curriculum, rate: float, rng: np.random.Generator | np.random.RandomState
) -> np.ndarray:
    """bool [L]: which tokens of a reflection example the student sees.

    Hidden are everything up to and including the first ``<|assistant|>``, what the curriculum hides of the
    reflection sequence, and the ``<|endofmessage|>`` behind it. Curriculum ``none`` hides nothing at all.
    """
    mask = np.ones(len(example), bool)
    if curriculum.name == "none":
        return mask
    start, stop = example.reflection
    mask[:start] = False
    mask[start:stop] = visible(curriculum, *blocks_of_reflection(example), rate, rng)
    mask[stop] = False
    return mask


def build_views(
    example: Example, objective: Objective, mask: np.ndarray | None, *, own_teacher: bool = True
) -> ExampleViews:
    """Cuts the views of one example and lists their labels.

    Args:
      example: L tokens.
      objective: weight tables. An instruction example always trains on what its assistant says.
      mask: bool [L] of the student view (``student_mask``); None for an example without one.
      own_teacher: the network that is trained is its own teacher; False: another network is.
    """
    length = len(example)
    last = length - 1
    teacher = View(example.tokens[:last], np.arange(last, dtype=np.int32))
    reflection = example.kind == REFLECTION
    teacher_ce = objectives.weights(objective.teacher_ce if reflection else objectives.SPOKEN, example.regions)[1:]
    targets = example.tokens[1:]
    if mask is None or not reflection or not objective.uses_student:
        slots = np.flatnonzero(teacher_ce)
        empty = np.zeros(0, np.int32)
        none = np.zeros(0, np.float32)
        return ExampleViews(
            teacher, None, None, slots, targets[slots], teacher_ce[slots], empty, empty, empty, none, none, none
        )
    held = np.flatnonzero(mask[:last])
    student = View(example.tokens[held], held.astype(np.int32))
    # A label in the student view needs its predecessor's slot; a divergence needs the slot itself.
    student_ce = objectives.weights(objective.student_ce, example.regions)[1:] * mask[1:] * mask[:last]
    kd = objectives.weights(objective.distill, example.regions)[:last] * mask[:last]
    pairs = np.flatnonzero((student_ce != 0) | (kd != 0))
    rest = teacher_ce.copy()
    taught_by = None
    if own_teacher:
        rest[pairs] = 0
    else:
        teacher = teacher if teacher_ce.any() else None
        taught = np.flatnonzero(kd)
        if len(taught):
            stop = taught[-1] + 1
            taught_by = View(example.tokens[:stop], np.arange(stop, dtype=np.int32))
        teacher_ce = np.zeros_like(rest)  # no other network learns from these pairs
    singles = np.flatnonzero(rest)
    return ExampleViews(
        teacher=teacher,
        student=student,
        taught_by=taught_by,
        single_slots=singles,
        single_targets=targets[singles],
        single_ce=rest[singles],
        # A pair without distillation may lie behind the end of the other network's view: its slot is not read.
        pair_teacher_slots=pairs if own_teacher else np.where(kd[pairs] != 0, pairs, 0),
        pair_student_slots=np.searchsorted(held, pairs),
        pair_targets=targets[pairs],
        pair_teacher_ce=teacher_ce[pairs],
        pair_student_ce=student_ce[pairs],
        pair_kd=kd[pairs],
    )


@dataclasses.dataclass(frozen=True)
class Work:
    """What passes over views have to do, whatever the model's size.

    Attributes:
      tokens: that the layers read.
      pairs: of a query and a key: each slot of a view attends to itself and to all before it.
      labels: slots that are projected onto the vocabulary.
    """

    tokens: int = 0
    pairs: int = 0
    labels: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.pairs + other.pairs, self.labels + other.labels)

    def __sub__(self, other: Work) -> Work:
        return Work(self.tokens - other.tokens, self.pairs - other.pairs, self.labels - other.labels)

    @classmethod
    def of(cls, length: int, labels: int = 0) -> Work:
        """Of one view of ``length`` slots."""
        return cls(length, length * (length + 1) // 2, labels)


def work_of(views: Sequence[ExampleViews], own_teacher: bool = True) -> tuple[Work, Work, Work]:
    """(a, b, c): what the network that is trained computes; what another network that teaches computes; what the first
    would compute besides if hidden tokens were masked instead of left out.
    """
    trained, taught, spared = Work(), Work(), Work()
    for view in views:
        trained += Work(labels=len(view.single_slots) + len(view.pair_targets) * (2 if own_teacher else 1))
        for own in (view.teacher, view.student):
            trained += Work.of(len(own)) if own is not None else Work()
        if view.taught_by is not None:
            taught += Work.of(len(view.taught_by), labels=int(np.count_nonzero(view.pair_kd)))
        if view.student is not None:
            whole = int(view.student.positions[-1]) + 1  # the last slot is never hidden: the answer's end
            spared += Work.of(whole) - Work.of(len(view.student))
    return trained, taught, spared
