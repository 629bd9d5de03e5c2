"""What the reference implementation computed comes out of ours: masks, labels, loss, parts, gradients, training runs.

The numbers and their form are described in the README of the golden directory. The quirks of the reference's loss are
followed by ``objective=reference``; its schedule lag is fed as recorded, its dead switch is a defect and not copied.
"""

import functools
import itertools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from rcjax import objective as objectives
from rcjax import views as view_code
from rcjax.blocks import BlockType, Conversation, ConversationError, decode, encode
from rcjax.curriculum import Curriculum, mask_rate
from rcjax.hf.convert import to_hf
from rcjax.hf.load import load_model
from rcjax.hf.tokenizer import codec, load_tokenizer
from rcjax.model import llama
from rcjax.objective import make_objective
from rcjax.packing import assemble
from rcjax.train.state import make_optimizer
from rcjax.train.step import LossSettings, loss_fn
from tests.conftest import golden_directory

ROW = 1024
BATCHES = {
    "refl_b3": ("refl0", "refl1", "refl2"),
    "refl_b1": ("refl3",),
    "refl_b2": ("refl4", "refl5"),
    "gen_b4": ("gen0", "gen1", "gen2", "gen3"),
}
CURRICULUM_OF = {
    "none": "none",
    "all_mask": "all",
    "sequential_token_mask": "sequential_token",
    "random_token_mask": "random_token",
    "sequential_block_mask": "sequential_block",
    "random_block_mask": "random_block",
}
LETTERS = {"t": BlockType.TEXT, "c": BlockType.CODE, "e": BlockType.EXECUTION}
pytestmark = pytest.mark.usefixtures("golden", "x64")


def curriculum_of(strategy):
    if strategy.startswith("block_mask"):
        return Curriculum("block", tuple(LETTERS[letter] for letter in strategy[-3:]))
    return Curriculum(CURRICULUM_OF[strategy])


def cases(model):
    """(key, case) of a golden file, defects left out; empty where the file is absent."""
    path = golden_directory() / f"golden_cases_{model}.json"
    if not path.exists():
        return []
    # The FLAG case is the reference's misspelt switch, which silently turns the strategy off.
    return [(key, case) for key, case in json.loads(path.read_text()).items() if not key.endswith("_FLAG")]


def models():
    return sorted(p.stem.removeprefix("golden_cases_") for p in golden_directory().glob("golden_cases_*.json"))


@functools.cache
def examples():
    """Examples by id, tokenised by the golden tokenizer."""
    text_codec = codec(load_tokenizer(golden_directory() / "model_llama"))
    lines = (golden_directory() / "samples.jsonl").read_text().splitlines()
    conversations = [Conversation.from_json(json.loads(line)) for line in lines]
    tokenised = encode(conversations, text_codec)
    assert [decode(e, text_codec) for e in tokenised] == conversations
    return {e.id: e for e in tokenised}


@functools.cache
def model(name):
    return load_model(golden_directory() / name, jnp.float64)


def microbatch(batch, curriculum, rate, dtype, rng=None):
    """The batch as the reference sees it: means over the tokens of one micro-batch; one example a row."""
    rng = rng or np.random.RandomState(3407)
    objective = make_objective("reference")
    views = []
    for example in batch:
        mask = view_code.student_mask(example, curriculum, rate, rng) if example.kind == "reflection" else None
        views.append(view_code.build_views(example, objective, mask))
    rows = [[i] for i in range(len(views))]
    arrays = assemble(views, rows, row_length=ROW, rows_per_microbatch=4, normalisation="token")
    counts = {
        "n_teacher": sum(view.single_ce.sum() + view.pair_teacher_ce.sum() for view in views),
        "n_student": sum(view.pair_student_ce.sum() for view in views),
        "n_kl": sum(view.kd_weight for view in views),
        # The product's weights are float32; the reference divides in float64.
        "ce_labels": sum(view.ce_weight for view in views),
        "kd_labels": sum(view.kd_weight for view in views),
    }
    for name, array in arrays.items():
        if array.dtype == np.float32:
            weight = (array > 0) / max(counts["kd_labels" if name == "pair_kd" else "ce_labels"], 1)
            np.testing.assert_allclose(array, weight, rtol=1e-6)
            arrays[name] = weight.astype(dtype)
    return {name: array[0] for name, array in arrays.items()}, counts


@functools.cache
def step(name, dtype):
    settings = LossSettings(model(name)[0], make_objective("reference"), compute_dtype=dtype)
    return jax.jit(lambda params, mb: jax.value_and_grad(loss_fn, has_aux=True)(params, mb, settings))


def run_case(name, case_key, case, dtype=jnp.float64):
    batch_name, *rest = case_key.split("/")
    curriculum = curriculum_of(rest[0]) if rest else Curriculum("none")
    batch = [examples()[identifier] for identifier in BATCHES[batch_name]]
    mb, counts = microbatch(batch, curriculum, case["mask_rate"] or 0.0, dtype)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), model(name)[1])
    (loss, parts), grads = step(name, dtype)(params, mb)
    return loss, parts, dict(to_hf(model(name)[0], grads)), counts


@pytest.mark.parametrize("batch", sorted(BATCHES))
def test_tokens_and_labels(batch):
    tensors = np.load(golden_directory() / "golden_batches.npz")
    for row, identifier in enumerate(BATCHES[batch]):
        example = examples()[identifier]
        length = len(example)
        np.testing.assert_array_equal(tensors[f"{batch}/input_ids"][row, :length], example.tokens)
        labels = tensors[f"{batch}/labels"][row, :length]
        np.testing.assert_array_equal(labels != -100, objectives.weights(objectives.SPOKEN, example.regions) > 0)
        if example.kind == "reflection":
            labels = tensors[f"{batch}/distillation_labels"][row, :length]
            np.testing.assert_array_equal(labels != -100, objectives.weights(objectives.ANSWER, example.regions) > 0)


@pytest.mark.parametrize("name", models())
def test_masks(name):
    path = golden_directory() / f"golden_arrays_{name}.npz"
    if not path.exists():
        pytest.skip(f"{path.name} is not in the golden directory")
    arrays = np.load(path)
    for key, case in cases(name):
        batch, *rest = key.split("/")
        if not rest:
            continue
        rng = np.random.RandomState(3407)
        for row, identifier in enumerate(BATCHES[batch]):
            mask = view_code.student_mask(examples()[identifier], curriculum_of(rest[0]), case["mask_rate"] or 0.0, rng)
            np.testing.assert_array_equal(mask, arrays[f"{key}/student_mask"][row, : len(mask)] > 0, err_msg=key)


@pytest.mark.parametrize(
    ("dtype", "relative", "absolute"),
    [(jnp.float64, 1e-9, 1e-14), (jnp.float32, 1e-4, 1e-6)],
    ids=["float64", "float32"],
)
@pytest.mark.parametrize("name", models())
def test_losses_and_gradients(name, dtype, relative, absolute):
    """``absolute`` is in units of the whole gradient's norm: some of its entries are all but zero."""
    for key, case in cases(name):
        loss, parts, grads, counts = run_case(name, key, case, dtype)
        expected = {"loss": loss, "ce": parts["ce"], "kl": parts["kl"], **counts}
        for field in ("loss", "ce", "kl", "n_teacher", "n_student", "n_kl"):
            if case.get(field) is not None:
                np.testing.assert_allclose(
                    expected[field], case[field], rtol=relative, atol=100 * absolute, err_msg=f"{key} {field}"
                )
        norm = math.sqrt(sum(float(jnp.sum(grad**2)) for grad in grads.values()))
        np.testing.assert_allclose(norm, case["grad_norm"], rtol=relative, err_msg=key)
        tolerance = {"rtol": relative, "atol": absolute * norm, "err_msg": key}
        for tensor, value in case["grad_norm_per_param"].items():
            np.testing.assert_allclose(np.linalg.norm(grads[tensor]), value, **tolerance)
        for probe in case["grad_probes"]:
            np.testing.assert_allclose(grads[probe["param"]][place(probe)], probe["values"], **tolerance)


def place(probe):
    """numpy's index of a probe."""
    return tuple(slice(*part) if isinstance(part, list) else part for part in probe["index"])


@functools.cache
def logits_of(name):
    """A view's logits [len, V], float64."""

    @jax.jit
    def forward(params, tokens, positions, segments):
        config = model(name)[0]
        hidden = llama.apply(config, params, tokens, positions, segments, dtype=jnp.float64)
        return hidden[0] @ llama.head_kernel(config, params)

    def of_view(view):
        length = len(view)
        rows = np.zeros((3, 1, ROW), np.int32)
        rows[:, 0, :length] = view.tokens, view.positions, np.ones(length)
        return np.asarray(forward(model(name)[1], *rows))[:length, : model(name)[0].vocab_size]

    return of_view


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("name", models())
def test_logits_and_values_of_every_position(name):
    """The compacted views of each example, one at a time, against what the masked full-length passes gave."""
    path = golden_directory() / f"golden_arrays_{name}.npz"
    if not path.exists():
        pytest.skip(f"{path.name} is not in the golden directory")
    arrays, batches = np.load(path), np.load(golden_directory() / "golden_batches.npz")
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)
    compared = 0
    teachers = {}
    for key, case in cases(name):
        batch, *rest = key.split("/")
        rng = np.random.RandomState(3407)
        for row, identifier in enumerate(BATCHES[batch]):
            example, at = examples()[identifier], case["logit_positions"][row]
            reflection = example.kind == "reflection"
            mask = None
            if reflection:
                curriculum = curriculum_of(rest[0])
                mask = view_code.student_mask(example, curriculum, case["mask_rate"] or 0.0, rng)
            views = view_code.build_views(example, make_objective("reference"), mask)
            if identifier not in teachers:
                teachers[identifier] = logits_of(name)(views.teacher)
            teacher = teachers[identifier]
            labels = batches[f"{batch}/{'distillation_labels' if reflection else 'labels'}"][row, : len(example)]
            (labelled,) = np.nonzero(labels != -100)
            if not reflection:
                values = -log_softmax(teacher)[labelled - 1, labels[labelled]]
                close(values, arrays[f"{key}/nll"][row, labelled], err_msg=key)
                if row < 2:
                    close(teacher[at], arrays[f"{key}/logits"][row], err_msg=key)
                compared += 1
                continue
            slots = np.full(len(example), -1)
            slots[views.student.positions] = np.arange(len(views.student))
            student = logits_of(name)(views.student)
            if row < 2:
                close(teacher[at], arrays[f"teacher_logits/{batch}"][row], err_msg=key)
                close(student[slots[at]], arrays[f"{key}/student_logits"][row], err_msg=key)
            values = -log_softmax(student)[slots[labelled - 1], labels[labelled]]
            close(values, arrays[f"{key}/student_nll"][row, labelled], err_msg=key)
            of_teacher, of_student = log_softmax(teacher[labelled]), log_softmax(student[slots[labelled]])
            values = (np.exp(of_teacher) * (of_teacher - of_student)).sum(-1)
            close(values, arrays[f"{key}/kl_pos"][row, labelled], err_msg=key)
            compared += 1
    assert compared >= len(cases(name))


def test_whole_gradient_of_one_case():
    (path,) = golden_directory().glob("golden_fullgrad_model_llama_*.npz")
    key = "refl_b3/block_mask_tce/r0.5"
    _, _, grads, _ = run_case("model_llama", key, dict(cases("model_llama"))[key])
    expected = np.load(path)
    assert set(expected.files) == set(grads)
    for tensor in expected.files:
        np.testing.assert_allclose(grads[tensor], expected[tensor], rtol=1e-9, atol=1e-13, err_msg=tensor)


def test_likely_mistakes_do_not_come_out():
    key = "refl_b3/block_mask_tce/r0.5"
    loss, parts, _, _ = run_case("model_llama", key, dict(cases("model_llama"))[key])
    for decoy in (0.66384, 0.66058, 42.55, 0.71893, 0.54312):
        assert abs(parts["kl"] - decoy) > 1e-4
    assert abs(loss - 13.63719) > 1e-4


def trajectory():
    return json.loads((golden_directory() / "golden_trajectory.json").read_text())


def runs():
    """Names of the recorded training runs; lists of plain numbers are float32 losses of other runs."""
    if not (golden_directory() / "golden_trajectory.json").exists():
        return []
    return [name for name, value in trajectory().items() if isinstance(value, list) and isinstance(value[0], dict)]


def model_of(run):
    """The model whose name's ending ends the run's name too; else the one that the file names."""
    endings = {}
    for directory in golden_directory().glob("model_*"):
        ending = directory.name.removeprefix("model_")
        endings |= {ending: directory.name, ending.removeprefix("llama_"): directory.name}
    found = [ending for ending in endings if run.endswith(f"_{ending}")]
    return endings[max(found, key=len)] if found else trajectory()["meta"]["model"]


def strategy_of(run):
    """The strategy that the run's name holds; the others used ``block_mask`` with the order t, c, e."""
    order = re.search(r"block_mask_([tce]{3})(_|$)", run)
    if order:
        return f"block_mask_{order[1]}"
    return next((name for name in CURRICULUM_OF if name != "none" and name in run), "block_mask_tce")


def rate_of(run, entry, batch, step_number, steps):
    """The mask rate of a recorded batch: by our own schedule where the run is of the intended one."""
    if "intended_schedule" in run:
        return mask_rate(step_number, steps)
    if "mask_rate" in entry or entry.get("visible") is None:
        return entry.get("mask_rate") or 0.0
    # D recorded no rates but what they left visible; `block` has three states.
    for rate in (0.0, 0.33, 0.67):
        rng = np.random.RandomState(0)
        visible = [view_code.student_mask(e, curriculum_of(strategy_of(run)), rate, rng).sum() for e in batch]
        if visible == entry["visible"]:
            return rate
    raise AssertionError(f"no mask rate leaves {entry['visible']} tokens visible")


def replay(run, dtype):
    """Trains as recorded; yields (entry, what ours gives for it) and, last, (None, parameters in HF form)."""
    name, entries, meta = model_of(run), trajectory()[run], trajectory()["meta"]
    windows = itertools.groupby(
        enumerate(entries), lambda item: item[1].get("global_step_before", item[1].get("step", item[0]))
    )
    windows = [[entry for _, entry in window] for _, window in windows]
    settings = ConfigDict(
        dict(learning_rate=meta["lr"], warmup_ratio=0.05, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=1.0)
    )
    tx, schedule = make_optimizer(settings, len(windows))
    model_config, params = model(name)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    opt_state = tx.init(params)
    update = jax.jit(tx.update)
    rng = np.random.RandomState(3407)  # one stream for the run, as the reference's collator has
    for number, window in enumerate(windows):
        sums = jax.tree.map(jnp.zeros_like, params)
        for entry in window:
            batch = [examples()[identifier] for identifier in entry["ids"]]
            rate = rate_of(run, entry, batch, number, len(windows))
            mb, counts = microbatch(batch, curriculum_of(strategy_of(run)), rate, dtype, rng)
            (loss, parts), grads = step(name, dtype)(params, mb)
            sums = jax.tree.map(jnp.add, sums, optax.tree.scale(1 / len(window), grads))
            ours = {"loss": loss, **parts, "lr": schedule(number), "n_kl": counts["n_kl"]}
            if entry is window[-1]:
                ours["grad_norm_before_clip"] = optax.tree.norm(sums)
                updates, opt_state = update(sums, opt_state, params)
                params = optax.apply_updates(params, updates)
                if "after_step" in entry:
                    tensors = dict(to_hf(model_config, params))
                    probes = [tensors[probe["param"]][place(probe)] for probe in meta["probes"]]
                    ours["after_step"] = {"param_norm": optax.tree.norm(params), "probes": probes}
            yield entry, ours
    yield None, dict(to_hf(model_config, params))


@pytest.mark.parametrize("run", runs())
def test_adamw_trajectory_in_float64(run):
    """Runs of the intended schedule by our own; the others by what they recorded (the reference's rates lag behind)."""
    for entry, ours in replay(run, jnp.float64):
        if entry is None:
            break
        for field in ("loss", "ce", "kl", "n_kl", "lr", "grad_norm_before_clip"):
            if entry.get(field) is not None and field in ours:
                np.testing.assert_allclose(ours[field], entry[field], rtol=1e-9, atol=1e-15, err_msg=field)
        if "after_step" in entry:
            after = entry["after_step"]
            np.testing.assert_allclose(ours["after_step"]["param_norm"], after["param_norm"], rtol=1e-9)
            np.testing.assert_allclose(ours["after_step"]["probes"], after["probes"], rtol=1e-7, atol=1e-9)
    letter = "A" if run.startswith("C_") else run.split("_")[0]  # C ends where A does
    path = golden_directory() / f"golden_trajectory_final_params_{letter}.npz"
    if path.exists() and model_of(run) == trajectory()["meta"]["model"]:
        final = np.load(path)
        assert set(final.files) == set(ours)
        for tensor in final.files:
            np.testing.assert_allclose(ours[tensor], final[tensor], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("run", runs())
def test_adamw_trajectory_in_float32(run):
    recorded = trajectory()
    losses = []
    for entry, ours in replay(run, jnp.float32):
        if entry is not None:
            np.testing.assert_allclose(ours["loss"], entry["loss"], rtol=1e-4)
            losses.append(float(ours["loss"]))
    for name, value in recorded.items():
        if re.fullmatch(run.split("_")[0] + r"_float32_\w+_losses", name):
            np.testing.assert_allclose(losses, value, rtol=1e-4, err_msg=name)


@functools.cache
def edge_examples():
    """The odd samples that are conversations to us, by id; and why the others are not."""
    text_codec = codec(load_tokenizer(golden_directory() / "model_llama"))
    taken, refused = {}, {}
    for line in (golden_directory() / "samples_edge.jsonl").read_text().splitlines():
        record = json.loads(line)
        try:
            (taken[record["id"]],) = encode([Conversation.from_json(record)], text_codec)
        except ConversationError as error:
            refused[record["id"]] = str(error)
    return taken, refused


@pytest.mark.parametrize("name", ["final_message_has_execution_block", "three_turns"])
def test_odd_conversations_as_the_reference_takes_them(name):
    expected = json.loads((golden_directory() / "golden_edge.json").read_text())[name]
    example = edge_examples()[0][name]
    np.testing.assert_array_equal(example.tokens, expected["input_ids"])
    for field, table in (("labels", objectives.SPOKEN), ("distillation_labels", objectives.ANSWER)):
        carries = objectives.weights(table, example.regions) > 0
        np.testing.assert_array_equal(np.asarray(expected[field]) != -100, carries, err_msg=field)
    curricula = {
        "block_mask": "block_mask_tce",
        "sequential_block_mask": "",
        "sequential_token_mask": "",
        "all_mask": "",
    }
    for strategy, rate in itertools.product(curricula, (0.1, 0.5, 1.0)):
        curriculum = curriculum_of(curricula[strategy] or strategy)
        mask = view_code.student_mask(example, curriculum, rate, np.random.RandomState(3407))
        np.testing.assert_array_equal(mask, np.asarray(expected[f"{strategy}/r{rate}"]) > 0, err_msg=strategy)


def test_where_the_reference_goes_wrong_we_do_not_follow():
    expected = json.loads((golden_directory() / "golden_edge.json").read_text())
    taken, refused = edge_examples()
    # It would hide its own answer.
    assert (
        "a reflection example needs a reflection turn, a re-answer instruction and an answer" in refused["single_turn"]
    )
    for name in ("end_marker_inside_text", "code_marker_inside_text", "end_of_message_marker_inside_text"):
        ids, example = np.asarray(expected[name]["input_ids"]), taken[name]
        assert (ids >= 600).sum() == (example.tokens >= 600).sum() + 1  # a spelled-out marker became one there
        for curriculum in ("all", "block", "sequential_block"):
            mask = view_code.student_mask(example, Curriculum(curriculum), 1.0, np.random.RandomState(0))
            _, stop = example.reflection
            assert not mask[: stop + 1].any()
            assert mask[stop + 1 :].all()  # nothing is left over behind a forged end
