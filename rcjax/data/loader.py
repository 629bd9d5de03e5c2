"""From tokenised examples to the batches of optimizer steps: a grain iterator whose state is the step.

Item k of ``StepSource`` is everything that optimizer step k trains on. It is a pure function of (examples,
settings, k): shuffling, masking and packing all derive from the seed and k, so any host can make any step's batch at
any time, and resuming needs nothing but the number of the next step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from rcjax.blocks import REFLECTION, Example
from rcjax.curriculum import Curriculum, mask_rate
from rcjax.objective import Objective
from rcjax.packing import PAIR_ARRAYS, TEACHER_ARRAYS, assemble, examples_of_step, pack_step, widths
from rcjax.views import ExampleViews, Work, build_views, student_mask, work_of


@dataclasses.dataclass(frozen=True)
class BatchSettings:
    """What decides a step's batch besides the examples."""

    objective: Objective
    curriculum: Curriculum
    total_steps: int
    batch_size: int
    row_length: int
    rows_per_microbatch: int
    normalisation: str
    seed: int
    own_teacher: bool = True  # False: the teacher is another network
    cuts: int = 4  # widths that a microbatch may be cut to


@dataclasses.dataclass(frozen=True, eq=False)
class StepBatch:
    """One optimizer step's data.

    Attributes:
      step: which step.
      arrays: ``packing.assemble``'s, [G, M, ...] in host memory.
      metrics: numbers about the batch that metrics.jsonl repeats.
      work: what the network that is trained computes.
      taught: what another network that teaches computes.
      spared: what the first would compute besides if hidden tokens were masked instead of left out.
      widths: over how many slots each microbatch is computed, [G] (``packing.widths``); the whole of a row where
        another network teaches.
      teacher_widths: the same of another network's rows, [G]; empty where the network teaches itself.
    """

    step: int
    arrays: dict[str, np.ndarray]
    metrics: dict[str, float]
    work: Work
    taught: Work
    spared: Work
    widths: tuple[int, ...]
    teacher_widths: tuple[int, ...] = ()

    @property
    def microbatches(self) -> int:
        """G."""
        return len(self.arrays["tokens"])

    def microbatch(self, index: int) -> dict[str, np.ndarray]:
        """Arrays [M, ...] of one microbatch, cut to what has to be computed."""
        width = self.widths[index]
        pairs = width if self.teacher_widths else (width + 1) // 2
        cuts = dict.fromkeys(PAIR_ARRAYS, pairs)
        if self.teacher_widths:
            cuts |= dict.fromkeys(TEACHER_ARRAYS, self.teacher_widths[index])
        arrays = {name: array[index, :, : cuts.get(name, width)] for name, array in self.arrays.items()}
        return {name: array for name, array in arrays.items() if array.shape[1]}


def numbered_examples(
    sources: Sequence[Sequence[Example]], repeats: Sequence[int], settings: BatchSettings, step: int
) -> Iterator[tuple[int, Example]]:
    """A step's examples, each with its number among all of them."""
    counts = [len(source) for source in sources]
    firsts = np.concatenate([[0], np.cumsum(counts)])
    for number in examples_of_step(counts, repeats, settings.seed, settings.batch_size, step):
        source = int(np.searchsorted(firsts, number, side="right")) - 1
        yield number, sources[source][number - firsts[source]]


def views_of_step(
    sources: Sequence[Sequence[Example]], repeats: Sequence[int], settings: BatchSettings, step: int
) -> tuple[list[ExampleViews], float]:
    """The views of a step's examples, and the mask rate they were made with."""
    rate = mask_rate(step, settings.total_steps, settings.curriculum.rate)
    views = []
    for number, example in numbered_examples(sources, repeats, settings, step):
        mask = None
        if example.kind == REFLECTION and settings.objective.uses_student:
            rng = np.random.default_rng([settings.seed, step, int(number)])
            mask = student_mask(example, settings.curriculum, rate, rng)
        views.append(build_views(example, settings.objective, mask, own_teacher=settings.own_teacher))
    return views, rate


class StepSource:
    """Random-access source for grain: item k is the ``StepBatch`` of optimizer step k."""

    def __init__(self, sources: Sequence[Sequence[Example]], repeats: Sequence[int], settings: BatchSettings):
        self._sources, self._repeats, self._settings = sources, tuple(repeats), settings

    def __len__(self) -> int:
        return self._settings.total_steps

    def example_ids(self, step: int) -> list[str]:
        """Of what optimizer step ``step`` (from 0) trains on."""
        return [example.id for _, example in numbered_examples(self._sources, self._repeats, self._settings, step)]

    def __getitem__(self, step: int) -> StepBatch:
        settings = self._settings
        views, rate = views_of_step(self._sources, self._repeats, settings, step)
        rows = pack_step(views, settings.row_length, settings.rows_per_microbatch, settings.cuts)
        arrays = assemble(
            views,
            rows,
            row_length=settings.row_length,
            rows_per_microbatch=settings.rows_per_microbatch,
            normalisation=settings.normalisation,
            own_teacher=settings.own_teacher,
        )

        def cut(lengths):  # [examples] -> [G]
            used = [sum(lengths[item] for item in row) for row in rows]
            return tuple(widths(used, settings.row_length, settings.rows_per_microbatch, settings.cuts))

        # Both cut at once would be too many programs, and where another network teaches its rows vary the more.
        computed, taught = cut([view.slots for view in views]), ()
        if not settings.own_teacher:
            computed = (settings.row_length,) * len(computed)
            taught = cut([0 if view.taught_by is None else len(view.taught_by) for view in views])
        students = [len(view.student) for view in views if view.student is not None]
        teachers = [view.taught_by or view.teacher for view in views]
        used = sum(view.slots for view in views)
        metrics = {
            "mask_rate": rate,
            "visible_tokens_per_example": float(np.mean(students)) if students else 0.0,
            "teacher_tokens_per_example": float(np.mean([len(view) for view in teachers if view is not None] or [0])),
            "examples": float(len(views)),
            "tokens": float(sum(view.computed_tokens for view in views)),
            "row_use": used / (sum(computed) * settings.rows_per_microbatch),
            "microbatches": float(len(arrays["tokens"])),
        }
        return StepBatch(step, arrays, metrics, *work_of(views, settings.own_teacher), computed, taught)


def step_batches(source: StepSource, prefetch: int) -> Any:
    """A grain iterator over steps, packed ahead in a background thread; ``get_state`` is ``{"next_index": k}``."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=max(1, prefetch))
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))


def most_slots(example: Example, objective: Objective) -> int:
    """Bound on the row slots that an example takes at any mask rate and with any curriculum: both views whole."""
    views = 2 if example.kind == REFLECTION and objective.uses_student else 1
    return views * (len(example) - 1)
