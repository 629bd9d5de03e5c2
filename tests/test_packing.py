"""Packing lays every example down once, whole, and says nothing that depends on the layout."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcjax.curriculum import Curriculum
from rcjax.objective import make_objective
from rcjax.packing import RowTooShortError, assemble, best_fit, by_cost, evenly, examples_of_step, pack_step, widths
from rcjax.views import build_views, student_mask
from tests.examples import random_examples


@given(st.lists(st.integers(1, 100), max_size=80), st.integers(100, 300))
def test_best_fit_places_every_item_once_within_capacity(sizes, capacity):
    rows = best_fit(sizes, capacity)
    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    assert all(sum(sizes[item] for item in row) <= capacity for row in rows)
    # Best fit never leaves two rows that would fit into one.
    loads = sorted(sum(sizes[item] for item in row) for row in rows)
    assert len(loads) < 2 or loads[0] + loads[1] > capacity


@given(
    st.lists(st.integers(20, 70), min_size=1, max_size=8),
    st.integers(0, 9),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 8),
)
def test_step_is_packed_once_and_never_dearer_than_tight_rows(lengths, seed, rows_per_microbatch, cuts):
    objective = make_objective("reference")
    views = []
    for number, length in enumerate(lengths):
        (example,) = random_examples(seed + number, 1)
        mask = None
        if example.kind == "reflection":
            mask = student_mask(example, Curriculum("block"), 0.5, np.random.default_rng(length))
        views.append(build_views(example, objective, mask))
    sizes = [view.slots for view in views]
    row_length = max(sizes) + seed
    rows = pack_step(views, row_length, rows_per_microbatch, cuts)
    assert sorted(item for row in rows for item in row) == list(range(len(views)))
    assert pack_step(views, row_length, rows_per_microbatch, cuts) == rows

    def computed(rows):
        used = sorted((sum(sizes[item] for item in row) for row in rows), reverse=True)
        assert max(used) <= row_length
        cut = widths(used, row_length, rows_per_microbatch, cuts)
        assert len(set(cut)) <= cuts
        return sum(cut) + 0.05 * row_length * len(cut)

    assert computed(rows) <= computed(best_fit(sizes, row_length))


@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(1, 9))
def test_even_rows_differ_by_one_item_at_most(sizes, count):
    rows = evenly(sizes, count)
    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    loads = sorted(sum(sizes[item] for item in row) for row in rows)
    assert len(rows) == min(count, len(sizes))
    assert loads[-1] - loads[0] <= max(sizes)


def test_item_longer_than_a_row_is_refused_with_the_field_to_change():
    with pytest.raises(RowTooShortError, match=r"101 slots .*config\.packing\.row_length is 100"):
        best_fit([50, 101], 100)


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.integers(0, 5),
    st.integers(1, 30),
)
def test_every_epoch_visits_every_entry_once(counts, seed, batch_size):
    repeats = [1 + number % 2 for number in range(len(counts))]
    entries = sum(count * repeat for count, repeat in zip(counts, repeats, strict=True))
    steps = -(-2 * entries // batch_size)
    seen = np.concatenate([examples_of_step(counts, repeats, seed, batch_size, step) for step in range(steps)])
    expected = collections.Counter()
    first = 0
    for count, repeat in zip(counts, repeats, strict=True):
        expected.update(dict.fromkeys(range(first, first + count), repeat))
        first += count
    assert collections.Counter(seen[:entries].tolist()) == expected
    assert collections.Counter(seen[entries : 2 * entries].tolist()) == expected


def test_every_epoch_has_an_order_of_its_own():
    orders = [examples_of_step([40], [1], 5, 40, epoch).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_batch_plan_is_a_pure_function_of_the_step():
    ahead = examples_of_step([50, 30], [1, 2], 7, 16, 9)
    for step in range(9):
        examples_of_step([50, 30], [1, 2], 7, 16, step)
    assert (examples_of_step([50, 30], [1, 2], 7, 16, 9) == ahead).all()
    assert (examples_of_step([50, 30], [1, 2], 8, 16, 9) != ahead).any()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.4, 1.0]), st.integers(1, 5))
def test_assembled_rows_hold_every_view_and_label(seed, rate, rows_per_microbatch):
    examples = random_examples(seed, 9)
    objective = make_objective("reference", 0.5)
    rng = np.random.default_rng(seed)
    views = [
        build_views(e, objective, student_mask(e, Curriculum(), rate, rng) if e.kind == "reflection" else None)
        for e in examples
    ]
    length = max(view.slots for view in views) + 30
    rows = best_fit([view.slots for view in views], length)
    arrays = assemble(views, rows, row_length=length, rows_per_microbatch=rows_per_microbatch)
    assert arrays["tokens"].shape[0] == -(-len(rows) // rows_per_microbatch)
    # Slots: every token of every view with its position, and padding elsewhere.
    used = arrays["segment_ids"] > 0
    laid = collections.Counter(zip(arrays["tokens"][used].tolist(), arrays["positions"][used].tolist(), strict=True))
    expected = collections.Counter()
    for view in views:
        for side in (view.teacher, view.student):
            if side is not None:
                expected.update(zip(side.tokens.tolist(), side.positions.tolist(), strict=True))
    assert laid == expected
    # Weights: each example counts the same, so CE weights sum to one over the step.
    ce = arrays["single_ce"].sum() + arrays["pair_teacher_ce"].sum() + arrays["pair_student_ce"].sum()
    assert ce == pytest.approx(1, rel=1e-5)
    # Pairs point at the same token and position in two segments of one row; the target is the next token.
    for g, m, column in np.argwhere(arrays["pair_kd"] + arrays["pair_student_ce"] > 0):
        teacher, student = arrays["pair_teacher_slots"][g, m, column], arrays["pair_student_slots"][g, m, column]
        row = {name: arrays[name][g, m] for name in ("tokens", "positions", "segment_ids")}
        assert row["positions"][teacher] == row["positions"][student]
        assert row["tokens"][teacher] == row["tokens"][student]
        assert row["segment_ids"][student] == row["segment_ids"][teacher] + 1
    # A host's share is the same rows of the whole.
    if rows_per_microbatch > 1:
        part = assemble(
            views, rows, row_length=length, rows_per_microbatch=rows_per_microbatch, local_rows=slice(1, None)
        )
        assert all((part[name] == array[:, 1:]).all() for name, array in arrays.items())


def test_a_step_of_few_rows_is_cut_where_tight_rows_can_not_be():
    """Two rows a microbatch: packed tight, a full row and a short one cost two full rows; dealt out evenly, less."""
    objective = make_objective("ce")
    examples = [example for seed in range(30) for example in random_examples(seed, 1) if example.kind != "reflection"]
    views = [build_views(example, objective, None) for example in examples[:5]]
    sizes = [view.slots for view in views]
    row_length = sum(sizes) - min(sizes)  # all but one fit the first row
    tight = by_cost(best_fit(sizes, row_length), views)
    assert len(tight) == 2

    def computed(rows):
        return widths([sum(sizes[item] for item in row) for row in rows], row_length, 2, cuts=8)

    assert computed(tight) == [row_length]
    assert sum(computed(pack_step(views, row_length, 2, cuts=8))) <= 0.75 * row_length
