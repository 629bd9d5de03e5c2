"""Views into fixed rows, and the batch plan: both pure, both the same on every host.

An optimizer step trains on a fixed number of *examples*; how many rows they fill varies with the step, since the
student's views shrink as the curriculum goes on. Rows are grouped into microbatches of a fixed shape, so one
compiled program serves every step.
"""

from __future__ import annotations

import bisect
import functools
import heapq
from collections.abc import Sequence

import numpy as np

from rcjax.views import ExampleViews

# Arrays of a microbatch: name -> (dtype, share of the row's slots it needs).
TOKEN_ARRAYS = {"tokens": np.int32, "positions": np.int32, "segment_ids": np.int32}
SINGLE_ARRAYS = {"single_slots": np.int32, "single_targets": np.int32, "single_ce": np.float32}
# What a teacher that is another network reads: rows of their own, for the same examples.
TEACHER_ARRAYS = {"teacher_tokens": np.int32, "teacher_positions": np.int32, "teacher_segment_ids": np.int32}
PAIR_ARRAYS = {
    "pair_teacher_slots": np.int32,
    "pair_student_slots": np.int32,
    "pair_targets": np.int32,
    "pair_teacher_ce": np.float32,
    "pair_student_ce": np.float32,
    "pair_kd": np.float32,
}


# What a microbatch costs besides its slots (adding gradients up, many small products), as a share of a row.
PER_MICROBATCH = 0.05


class RowTooShortError(ValueError):
    """An example whose views do not fit a row."""


def examples_of_step(
    counts: Sequence[int], repeats: Sequence[int], seed: int, batch_size: int, step: int
) -> np.ndarray:
    """Which examples optimizer step ``step`` trains on: the batch plan.

    Sources are laid one behind the other, source s ``repeats[s]`` times (the paper takes instructions once and
    reflection sequences twice an epoch); every epoch is a fresh permutation of all that, and steps take
    ``batch_size`` entries after one another, across the epochs' borders.

    Args:
      counts: [n] examples of each source.
      repeats: [n] how often a source stands in an epoch.

    Returns:
      int64 [batch_size]: numbers of examples, counted through all sources in order.
    """
    entries = _entries(tuple(counts), tuple(repeats))
    first = step * batch_size
    where = np.arange(first, first + batch_size)
    chosen = np.empty(batch_size, np.int64)
    for epoch in np.unique(where // len(entries)):
        inside = where // len(entries) == epoch
        chosen[inside] = entries[_permutation(len(entries), seed, int(epoch))[where[inside] % len(entries)]]
    return chosen


@functools.lru_cache(maxsize=4)
def _entries(counts: tuple[int, ...], repeats: tuple[int, ...]) -> np.ndarray:
    firsts = np.concatenate([[0], np.cumsum(counts)])
    parts = [
        np.tile(np.arange(first, first + count), repeat)
        for first, count, repeat in zip(firsts[:-1], counts, repeats, strict=True)
    ]
    entries = np.concatenate(parts)
    if not len(entries):
        raise ValueError("config.data: no example is left to train on")
    return entries


@functools.lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs items into rows of ``capacity``: longest first, each where the least room is left over.

    Returns:
      Rows of item numbers, in the order in which rows were opened.

    Raises:
      RowTooShortError: an item larger than a row.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (slots left, row), ascending
    for item in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        size = sizes[item]
        if size > capacity:
            raise RowTooShortError(
                f"an example takes {size} slots but config.packing.row_length is {capacity}; raise it or lower "
                "config.data.max_length"
            )
        at = bisect.bisect_left(room, (size, -1))
        if at == len(room):
            left, row = capacity, len(rows)
            rows.append([])
        else:
            left, row = room.pop(at)
        rows[row].append(item)
        bisect.insort(room, (left - size, row))
    return rows


def assemble(
    views: Sequence[ExampleViews],
    rows: Sequence[Sequence[int]],
    *,
    row_length: int,
    rows_per_microbatch: int,
    normalisation: str = "example",
    own_teacher: bool = True,
    local_rows: slice = slice(None),
) -> dict[str, np.ndarray]:
    """Lays packed views down as microbatches.

    CE and divergence weights leave here normalised, so that summing over all tokens of all microbatches gives the
    loss of the step, however the examples lie: ``example`` divides by each example's own weight sum and by the
    number of examples (what batch 1 a device means in the reference), ``token`` by the sums over the step.

    Args:
      views: the step's examples.
      rows: item numbers of each row, from ``best_fit``.
      row_length: S, slots of a row.
      rows_per_microbatch: M.
      normalisation: ``example`` or ``token``.
      own_teacher: as in ``views.build_views``.
      local_rows: which of the M rows of every microbatch this host lays down.

    Returns:
      Arrays [G, M', S] (tokens, positions, segment_ids), [G, M', S] (single labels) and [G, M', S // 2] (pairs),
      with G = ceil(rows / M) microbatches. Unused slots have segment 0, unused labels weight 0; labels are
      left-aligned, so the number in use tells how many chunks the loss has to project. Where another network
      teaches, pairs are [G, M', S] and there are ``TEACHER_ARRAYS`` [G, M', S]. ``widths`` tells what of it all is
      computed.
    """
    ce_scale, kd_scale = _scales(views, normalisation)
    count = -(-len(rows) // rows_per_microbatch)
    mine = range(rows_per_microbatch)[local_rows]
    shape = (count, len(mine))
    arrays = {name: np.zeros((*shape, row_length), dtype) for name, dtype in (TOKEN_ARRAYS | SINGLE_ARRAYS).items()}
    # A pair takes a slot in either view, and both views lie in the row unless another network teaches.
    pairs = row_length // 2 if own_teacher else row_length
    arrays |= {name: np.zeros((*shape, pairs), dtype) for name, dtype in PAIR_ARRAYS.items()}
    if not own_teacher:
        arrays |= {name: np.zeros((*shape, row_length), dtype) for name, dtype in TEACHER_ARRAYS.items()}
    for number, items in enumerate(rows):
        microbatch, row = divmod(number, rows_per_microbatch)
        if row not in mine:
            continue
        target = {name: array[microbatch, row - mine.start] for name, array in arrays.items()}
        _lay_row(target, [(views[item], ce_scale[item], kd_scale[item]) for item in items])
    return arrays


def pack_step(
    views: Sequence[ExampleViews], row_length: int, rows_per_microbatch: int, cuts: int = 4
) -> list[list[int]]:
    """Rows of a step: item numbers, in the order in which ``assemble`` takes them.

    A step has the examples it has, so packed tight its last microbatch may hold one short row and nothing else, which
    still costs a row on every device. So rows are also packed to shorter lengths, and dealt out evenly to as many as
    the microbatches hold, and of these ways the one is taken whose microbatches, cut to what they use (``widths``),
    compute the fewest slots. Of large steps that is the tightest.

    Raises:
      RowTooShortError: an example larger than a row.
    """
    sizes = [view.slots for view in views]
    part = _part(row_length, cuts)

    def used(rows):
        return [sum(sizes[item] for item in row) for row in rows]

    def cost(rows):
        cut = widths(used(rows), row_length, rows_per_microbatch, cuts)
        return sum(cut) + len(cut) * row_length * PER_MICROBATCH

    ways = [best_fit(sizes, row_length)]
    even = evenly(sizes, -(-len(ways[0]) // rows_per_microbatch) * rows_per_microbatch)
    if max(used(even), default=0) <= row_length:
        ways.append(even)
    shorter = range(max(sizes, default=0) // part * part + part, row_length, part)
    ways += [best_fit(sizes, length) for length in reversed(shorter)]
    return min((by_cost(rows, views) for rows in ways), key=cost)


def evenly(sizes: Sequence[int], count: int) -> list[list[int]]:
    """Deals items out to ``count`` rows of no fixed length: longest first, each to the row that holds least."""
    rows: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, row) for row in range(count)]
    for item in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        load, row = loads[0]
        rows[row].append(item)
        heapq.heapreplace(loads, (load + sizes[item], row))
    return [row for row in rows if row]


def by_cost(rows: Sequence[Sequence[int]], views: Sequence[ExampleViews]) -> list[list[int]]:
    """The rows in descending order of slots in use, and of attention's work where those are equal.

    So the rows of a microbatch are much alike and no device waits long for its neighbour, and what room is left over
    comes together in the last microbatch, which is cut (``widths``).
    """

    def cost(row):
        lengths = [len(view) for item in row for view in (views[item].teacher, views[item].student) if view is not None]
        return sum(lengths), sum(length * length for length in lengths)

    return sorted(map(list, rows), key=cost, reverse=True)


def widths(used: Sequence[int], row_length: int, rows_per_microbatch: int, cuts: int = 4) -> list[int]:
    """Over how many slots each microbatch is computed: [G], one of ``cuts`` even parts of a row or several.

    So no more than ``cuts`` programs are compiled, and the last microbatch of a step seldom costs a whole one.

    Args:
      used: [rows] slots in use; 0 for all rows of a microbatch gives width 0.
    """
    part = _part(row_length, cuts)
    longest = [max(used[first : first + rows_per_microbatch]) for first in range(0, len(used), rows_per_microbatch)]
    return [min(row_length, -(-length // part) * part) for length in longest]


def part_widths(row_length: int, cuts: int = 4) -> list[int]:
    """Every width that ``widths`` may give a microbatch that holds something, the widest first."""
    part = _part(row_length, cuts)
    return [min(row_length, count * part) for count in range(-(-row_length // part), 0, -1)]


def _part(row_length: int, cuts: int) -> int:
    return -(-row_length // cuts)


def _scales(views: Sequence[ExampleViews], normalisation: str) -> tuple[np.ndarray, np.ndarray]:
    ce = np.array([view.ce_weight for view in views])
    kd = np.array([view.kd_weight for view in views])
    if normalisation == "token":
        return np.full(len(ce), 1 / max(ce.sum(), 1e-30)), np.full(len(kd), 1 / max(kd.sum(), 1e-30))
    if normalisation != "example":
        raise ValueError(f"config.objective.normalisation is {normalisation!r}; expected 'example' or 'token'")
    # An example without such labels adds nothing; its scale must not be infinite.
    return 1 / np.where(ce > 0, ce, 1) / len(views), 1 / np.where(kd > 0, kd, 1) / len(views)


def _lay_row(target: dict[str, np.ndarray], items: Sequence[tuple[ExampleViews, float, float]]) -> None:
    slot = single = pair = segment = taught = 0
    for views, ce_scale, kd_scale in items:
        bases = []
        for view in (views.teacher, views.student):
            bases.append(slot)
            if view is None:
                continue
            segment += 1
            here = slice(slot, slot + len(view))
            target["tokens"][here] = view.tokens
            target["positions"][here] = view.positions
            target["segment_ids"][here] = segment
            slot += len(view)
        teacher_base = 0 if "teacher_tokens" in target else bases[0]
        if views.taught_by is not None:
            teacher_base = taught
            here = slice(taught, taught + len(views.taught_by))
            target["teacher_tokens"][here] = views.taught_by.tokens
            target["teacher_positions"][here] = views.taught_by.positions
            target["teacher_segment_ids"][here] = segment
            taught = here.stop
        here = slice(single, single + len(views.single_slots))
        target["single_slots"][here] = views.single_slots + bases[0]
        target["single_targets"][here] = views.single_targets
        target["single_ce"][here] = views.single_ce * ce_scale
        single = here.stop
        here = slice(pair, pair + len(views.pair_targets))
        target["pair_teacher_slots"][here] = views.pair_teacher_slots + teacher_base
        target["pair_student_slots"][here] = views.pair_student_slots + bases[1]
        target["pair_targets"][here] = views.pair_targets
        target["pair_teacher_ce"][here] = views.pair_teacher_ce * ce_scale
        target["pair_student_ce"][here] = views.pair_student_ce * ce_scale
        target["pair_kd"][here] = views.pair_kd * kd_scale
        pair = here.stop
