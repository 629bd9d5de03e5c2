"""The account adds up, whatever the clock and the compiler do."""

import jax
import jax.numpy as jnp
import pytest

from rcjax.train.goodput import CHECKPOINT, COMPILE, INPUT, RESTART, START, STEP, Goodput


class Clock:
    """Shows what it was told."""

    def __init__(self, now=0.0):
        self.now = now

    def __call__(self):
        return self.now


def account(wall=1000.0):
    clock, wall = Clock(), Clock(wall)
    return Goodput(clock=clock, wall=wall), clock, wall


def test_every_second_is_booked_once():
    goodput, clock, _ = account()
    clock.now = 4.0
    goodput.steps_begin()
    clock.now = 10.0
    with goodput.doing(INPUT):
        clock.now = 11.0
        with goodput.doing(CHECKPOINT):
            clock.now = 13.5
        clock.now = 14.0
    clock.now = 24.0
    seconds = goodput.seconds
    assert seconds[START] == 4.0
    assert seconds[INPUT] == 1.5
    assert seconds[CHECKPOINT] == 2.5
    assert seconds[STEP] == 16.0
    assert sum(seconds.values()) == 24.0
    assert goodput.share() == 16 / 24
    assert goodput.share(without=(START,)) == 16 / 20
    assert goodput.describe() == (
        "goodput 66.7% of 24 s (start 4.0 s, checkpoint 2.5 s, input 1.5 s); 80.0% once compiled"
    )


def test_what_was_lost_between_two_runs_is_restart():
    first, clock, wall = account()
    first.steps_begin()
    clock.now, wall.now = 10.0, 1010.0
    saved = first.state()
    # Five steps' worth of seconds are lost behind the checkpoint, and nothing runs for a while.
    second, clock, wall = account(wall=1042.0)
    clock.now = 3.0
    second.resume(saved)
    second.steps_begin()
    clock.now = 8.0
    assert second.seconds[RESTART] == 32.0
    assert second.seconds[START] == 3.0
    assert second.seconds[STEP] == 15.0
    assert sum(second.seconds.values()) == 1050 - 1000
    behind, *_ = account(wall=900.0)  # the clock was set back
    behind.resume(saved)
    assert behind.seconds[RESTART] == 0.0


def test_an_error_ends_its_kind():
    goodput, clock, _ = account()
    goodput.steps_begin()
    doing = goodput.doing(INPUT)
    doing.__enter__()
    clock.now = 1.0
    with pytest.raises(ValueError, match="no more"):
        doing.gen.throw(ValueError("no more"))
    clock.now = 3.0
    assert goodput.seconds[STEP] == 2.0


def test_compilation_is_booked_apart():
    goodput = Goodput()
    goodput.steps_begin()
    size = 257  # of no other test
    jax.jit(lambda x: jnp.linalg.svd(x @ x)[1].sum())(jnp.ones((size, size))).block_until_ready()
    seconds = goodput.seconds
    assert seconds[COMPILE] > 0.02
    assert seconds[STEP] >= 0
    again = goodput.seconds[COMPILE]
    assert again == seconds[COMPILE]
