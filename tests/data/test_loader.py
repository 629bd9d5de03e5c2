"""A step's batch is a pure function of the step, and a restored iterator goes on where it was."""

import dataclasses

import numpy as np
import pytest

from rcjax.curriculum import Curriculum
from rcjax.data.loader import BatchSettings, StepSource, step_batches
from rcjax.objective import make_objective
from tests.examples import random_examples

SETTINGS = BatchSettings(
    objective=make_objective("reference", 0.5),
    curriculum=Curriculum("random_block"),
    total_steps=12,
    batch_size=5,
    row_length=400,
    rows_per_microbatch=2,
    normalisation="example",
    seed=3,
)


def source(**changes):
    sources = [random_examples(1, 9, reflection_share=0.0), random_examples(2, 7, reflection_share=1.0)]
    return StepSource(sources, (1, 2), dataclasses.replace(SETTINGS, **changes))


def assert_equal(ours, theirs):
    assert ours.step == theirs.step
    assert ours.metrics == theirs.metrics
    for name, array in ours.arrays.items():
        np.testing.assert_array_equal(array, theirs.arrays[name])


def test_a_step_does_not_depend_on_the_steps_before_it():
    forward, backward = source(), source()
    ahead = {step: backward[step] for step in reversed(range(12))}
    for step in range(12):
        assert_equal(forward[step], ahead[step])


@pytest.mark.parametrize("prefetch", [0, 3])
def test_restored_iterator_goes_on_where_it_was(prefetch):
    whole = list(step_batches(source(), prefetch))
    assert [batch.step for batch in whole] == list(range(12))
    first = step_batches(source(), prefetch)
    for _ in range(5):
        next(first)
    second = step_batches(source(), prefetch)
    second.set_state(first.get_state())
    for expected in whole[5:]:
        assert_equal(next(second), expected)


def test_random_masks_are_drawn_anew_at_every_step():
    """One example, always the whole batch, at one rate: what is visible varies with the step and the seed."""
    (example,) = random_examples(4, 1, reflection_share=1.0)
    curriculum = Curriculum("random_token", rate=dataclasses.replace(SETTINGS.curriculum.rate, shape="step", steps=2))
    settings = dataclasses.replace(SETTINGS, batch_size=1, curriculum=curriculum)

    def laid(step, seed):
        batch = StepSource([[example]], (1,), dataclasses.replace(settings, seed=seed))[step]
        return batch.metrics["mask_rate"], batch.arrays["positions"].tobytes()

    views = {laid(step, seed) for step in (6, 7, 8) for seed in (0, 1)}
    assert {rate for rate, _ in views} == {0.5}
    assert len(views) == 6


@pytest.mark.parametrize("own_teacher", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_microbatches_are_cut_to_what_they_use(rows, own_teacher):
    quarter = SETTINGS.row_length // 4
    seen = set()
    for step in range(12):
        batch = source(rows_per_microbatch=rows, own_teacher=own_teacher)[step]
        loads, computed = [], 0
        for index in range(batch.microbatches):
            cut = batch.microbatch(index)
            for name, array in batch.arrays.items():
                kept = cut[name].shape[1] if name in cut else 0
                np.testing.assert_array_equal(cut[name] if kept else array[index, :, :0], array[index, :, :kept])
                assert not array[index, :, kept:].any(), name  # padding alone is cut off
            width = cut["tokens"].shape[1]
            assert width % quarter == 0
            if own_teacher:
                assert (cut["segment_ids"][:, width - quarter :] > 0).any()  # and it could not be cut further
            assert cut["single_slots"].max() < width
            assert cut["pair_student_slots"].max() < width
            loads += (cut["segment_ids"] > 0).sum(1).tolist()
            computed += cut["tokens"].size
            seen.add(width)
        assert loads == sorted(loads, reverse=True)  # rows of a microbatch are alike, what is left over comes last
        assert batch.metrics["row_use"] == sum(loads) / computed
    assert len(seen) > 1 or not own_teacher
