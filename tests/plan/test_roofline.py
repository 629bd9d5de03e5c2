"""The arithmetic of bounds, by hand."""

import dataclasses

import pytest

from configs import tiny
from rcjax.model import LlamaConfig
from rcjax.objective import OBJECTIVES
from rcjax.packing import RowTooShortError
from rcjax.plan.hlo import Collective
from rcjax.plan.roofline import Times, load_of, microbatch_work, peak, times, update_bytes, wire_rate
from rcjax.plan.topology import parse

MODEL = LlamaConfig(
    vocab_size=100,
    hidden_size=8,
    intermediate_size=16,
    num_layers=3,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
)
MESH = {"replica": 1, "data": 2, "fsdp": 1, "tensor": 1}
REFERENCE = OBJECTIVES["reference"]


@dataclasses.dataclass(frozen=True)
class Place:
    coords: tuple[int, ...]


def config(remat="none"):
    made = tiny.get_config()
    made.data.max_length = 101
    made.packing.row_length = 512
    made.train.batch_size = 20
    made.train.remat = remat
    return made


def test_the_load_is_full_rows_of_the_longest_examples():
    load = load_of(config(), REFERENCE, rows=2)
    # Two views of 100 slots: two examples of 200 in a row of 512, four in a microbatch of two rows.
    assert (load.views, load.length, load.examples_per_row, load.microbatches) == (2, 100, 2, 5)
    assert load.tokens == 20 * 200
    assert load_of(config(), OBJECTIVES["ce"], rows=2).examples_per_row == 5  # one view
    short = config()
    short.packing.row_length = 199
    with pytest.raises(RowTooShortError, match=r"row_length is 199.*can take 200 slots"):
        load_of(short, REFERENCE, rows=2)


def test_flops_of_a_microbatch_are_the_formulas():
    load = load_of(config(), REFERENCE, rows=2)
    layer = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16  # q, k and v, o, MLP
    slots, pairs = 2 * 2 * 2 * 100, 2 * 2 * 2 * (100 * 101 // 2)  # rows, examples, views
    useful = 3 * (2 * 3 * layer * slots + 4 * 3 * 8 * pairs + 2 * 8 * 100 * slots)
    # Executed: rows whole, attention's kernel over the causal triangle of a row in tiles of 512, backward 3.5 times.
    all_slots, triangle = 2 * 512, 2 * (512 * (512 + 512) // 2)
    products, kernel, head = 2 * 3 * layer * all_slots, 4 * 3 * 8 * triangle, 2 * 8 * 100 * all_slots
    for remat, again, kernel_again in (("none", 0, 0), ("dots", 0, 1), ("full", 1, 1)):
        work = microbatch_work(config(remat), MODEL, None, load, MESH, "splash")
        assert work.model_flops == useful / 2
        assert work.executed_flops == ((3 + again) * products + (4.5 + kernel_again) * kernel + 3 * head) / 2
    taught = microbatch_work(config(), MODEL, MODEL, load, MESH, "splash").model_flops * 2 - useful
    assert taught == useful / 3 / 2  # one view of each example, forward alone


def test_memory_falls_with_split_weights_and_rises_with_recomputation():
    load = load_of(config(), REFERENCE, rows=2)
    plain, again = (
        microbatch_work(config(r), MODEL, None, load, MESH, "splash").memory_bytes for r in ("none", "full")
    )
    weights, activations = MODEL.num_params * (4 + 2 * 4), 512 * 3 * (17 * 8 + 6 * 8 + 4 * 8 + 6 * 16) * 4
    assert again - plain == weights + activations
    split = {"replica": 1, "data": 1, "fsdp": 2, "tensor": 1}
    assert microbatch_work(config(), MODEL, None, load, split, "splash").memory_bytes < plain
    assert update_bytes(10, ema=False) == 10 * 4 * 9
    assert update_bytes(10, ema=True) == 10 * 4 * 11


def test_the_longest_time_binds():
    both = Times(1.0, 2.0, 0.5) * 3 + Times(0.0, 0.0, 10.0)
    assert both == Times(3.0, 6.0, 11.5)
    assert (both.overlapped, both.one_by_one, both.middle, both.binding) == (11.5, 20.5, 16.0, "wire")
    v5e, places = parse("v5e:2x2"), [Place((x, y)) for x in range(2) for y in range(2)]
    gather = Collective("all-gather", 45e9, 4, (0, 1, 2, 3))
    assert times(v5e, 197e12, 819e9, [gather], places, "bfloat16") == Times(1.0, 1.0, 2.0)


def test_peaks_are_the_data_sheets():
    assert peak(parse("v5p:4x4x4"), "bfloat16") == 459e12
    assert peak(parse("v6e:2x2"), "float32") == pytest.approx(918e12 / 6)  # passes of bfloat16
    assert peak(parse("h100:8"), "float32") == pytest.approx(67e12)


def test_links_are_those_of_the_dimensions_that_a_group_spans():
    places = [Place((x, y, z)) for x in range(4) for y in range(4) for z in range(2)]
    torus = dataclasses.replace(parse("v5p:4x4x2"))

    def rate(*members, kind="all-gather", topology=torus):
        return wire_rate(topology, Collective(kind, 1.0, 1, members), places)

    assert rate(0, 1) == 90e9  # two neighbours, one link
    assert rate(0, 2, 4, 6) == 2 * 90e9  # a ring of four, both ways
    assert rate(*range(32)) == 5 * 90e9
    assert rate(0, 1, kind="collective-permute") == 2 * 90e9
    flat = [Place((x, y)) for x in range(4) for y in range(4)]
    everything = Collective("all-gather", 1.0, 1, tuple(range(16)))
    assert wire_rate(parse("v5e:4x4"), everything, flat) == 2 * 45e9  # its ends are not joined
    assert rate(*range(8), topology=parse("h100:64")) == 450e9
    assert rate(*range(64), topology=parse("h100:64")) == 400e9  # eight GPUs of a host share its network cards
    assert rate(0, 8, 16, topology=parse("h100:64")) == 50e9
