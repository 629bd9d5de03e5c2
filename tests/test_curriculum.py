"""Each curriculum hides what its formula says."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcjax.blocks import BlockType
from rcjax.curriculum import CURRICULA, Curriculum, Rate, mask_rate, visible

BLOCKS = st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.integers(1, 9)), min_size=1, max_size=8)
RATES = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.33, 0.67, 1.0]))


def hidden_count(name, blocks, rate):
    types, lengths = zip(*blocks, strict=True)
    mask = visible(Curriculum(name), types, lengths, rate, np.random.default_rng(0))
    assert mask.shape == (sum(lengths),)
    return int((~mask).sum()), mask, types, lengths


@given(BLOCKS, RATES)
def test_token_curricula_hide_ceil_of_rate_times_tokens(blocks, rate):
    for name in ("sequential_token", "random_token"):
        hidden, mask, _, lengths = hidden_count(name, blocks, rate)
        assert hidden == math.ceil(sum(lengths) * rate)
    _, mask, _, _ = hidden_count("sequential_token", blocks, rate)
    assert (np.diff(mask.astype(int)) >= 0).all()  # a hidden head, a visible tail


@given(BLOCKS, RATES)
def test_block_curricula_hide_whole_blocks(blocks, rate):
    for name in ("sequential_block", "random_block", "block"):
        _, mask, types, lengths = hidden_count(name, blocks, rate)
        pieces = np.split(mask, np.cumsum(lengths)[:-1])
        assert all(piece.all() or not piece.any() for piece in pieces)
        gone = [kind for kind, piece in zip(types, pieces, strict=True) if not piece.any()]
        if name == "block":
            order = [BlockType.TEXT, BlockType.CODE, BlockType.EXECUTION]
            expected = order[: 1 + (rate >= 0.33) + (rate >= 0.67)]
            assert gone == [kind for kind in types if kind in expected]
        else:
            assert len(gone) == math.ceil(len(blocks) * rate)


@given(BLOCKS, RATES, RATES)
def test_more_rate_never_shows_more(blocks, low, high):
    low, high = sorted((low, high))
    for name in set(CURRICULA) - {"random_block"}:  # which draws blocks of unlike lengths
        assert hidden_count(name, blocks, low)[0] <= hidden_count(name, blocks, high)[0]


def test_ends_of_the_curricula():
    blocks = [(1, 3), (2, 4), (3, 5), (1, 2)]
    assert hidden_count("none", blocks, 1.0)[0] == 0
    assert hidden_count("all", blocks, 0.0)[0] == 14
    assert hidden_count("block", blocks, 0.0)[0] == 5  # TEXT is hidden from the start
    for name in set(CURRICULA) - {"none"}:
        assert hidden_count(name, blocks, 1.0)[0] == 14


def test_rate_is_linear_in_completed_steps_and_compares_exactly():
    assert [mask_rate(step, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert mask_rate(32, 100) >= 0.33
    assert not mask_rate(1, 3) >= 0.67
    assert math.ceil(100 * mask_rate(6, 100)) == 8  # 100 * 0.07 in doubles is above 7


@given(st.integers(1, 50), st.sampled_from(["linear", "cosine", "power", "step", "hold"]), st.floats(0.1, 1))
def test_rate_shapes_rise_from_low_to_final(total, shape, final):
    rate = Rate(shape, start=0.2, end=0.8, final=final)
    values = [mask_rate(step, total, rate) for step in range(total)]
    assert all(0 <= value <= final for value in values)
    assert all(b >= a for a, b in itertools.pairwise(values))
    assert values[-1] == pytest.approx(final)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"curriculum\.name is 'blok'"):
        Curriculum("blok")
    with pytest.raises(ValueError, match="block_order"):
        Curriculum("block", (BlockType.TEXT, BlockType.TEXT, BlockType.CODE))
    with pytest.raises(ValueError, match="shape"):
        Rate("wavy")
