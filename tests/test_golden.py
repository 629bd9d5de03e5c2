"""What the reference implementation computed comes out of ours: masks, labels, loss, parts, gradients, training runs.

The numbers and their form are described in the README of the golden directory. The quirks of the reference's loss are
followed by ``objective=reference``; its schedule lag is fed as recorded, its dead switch is a defect and not copied.
"""

import functools
import itertools
import json
import math

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


def microbatch(batch, curriculum, rate, dtype):
    """The batch as the reference sees it: means over the tokens of one micro-batch; one example a row."""
    rng = np.random.RandomState(3407)
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


@pytest.mark.parametrize("name", models())
def test_losses_and_gradients_in_float64(name):
    for key, case in cases(name):
        loss, parts, grads, counts = run_case(name, key, case)
        expected = {"loss": loss, "ce": parts["ce"], "kl": parts["kl"], **counts}
        for field in ("loss", "ce", "kl", "n_teacher", "n_student", "n_kl"):
            if case.get(field) is not None:
                np.testing.assert_allclose(
                    expected[field], case[field], rtol=1e-9, atol=1e-12, err_msg=f"{key} {field}"
                )
        norm = math.sqrt(sum(float(jnp.sum(grad**2)) for grad in grads.values()))
        np.testing.assert_allclose(norm, case["grad_norm"], rtol=1e-9, err_msg=key)
        for tensor, value in case["grad_norm_per_param"].items():
            np.testing.assert_allclose(np.linalg.norm(grads[tensor]), value, rtol=1e-9, atol=1e-14, err_msg=key)
        for probe in case["grad_probes"]:
            index = tuple(slice(*part) if isinstance(part, list) else part for part in probe["index"])
            np.testing.assert_allclose(grads[probe["param"]][index], probe["values"], rtol=1e-9, atol=1e-14)


def test_whole_gradient_of_one_case():
    (path,) = golden_directory().glob("golden_fullgrad_model_llama_*.npz")
    key = "refl_b3/block_mask_tce/r0.5"
    _, _, grads, _ = run_case("model_llama", key, dict(cases("model_llama"))[key])
    expected = np.load(path)
    assert set(expected.files) == set(grads)
    for tensor in expected.files:
        np.testing.assert_allclose(grads[tensor], expected[tensor], rtol=1e-9, atol=1e-13, err_msg=tensor)


def test_losses_in_float32():
    for key in ("refl_b3/block_mask_tce/r0.5", "refl_b3/random_token_mask/r0.33", "gen_b4"):
        case = dict(cases("model_llama"))[key]
        loss, _, grads, _ = run_case("model_llama", key, case, jnp.float32)
        np.testing.assert_allclose(loss, case["loss"], rtol=2e-6)
        norm = math.sqrt(sum(float(jnp.sum(grad**2)) for grad in grads.values()))
        np.testing.assert_allclose(norm, case["grad_norm"], rtol=2e-5)


def test_likely_mistakes_do_not_come_out():
    key = "refl_b3/block_mask_tce/r0.5"
    loss, parts, _, _ = run_case("model_llama", key, dict(cases("model_llama"))[key])
    for decoy in (0.66384, 0.66058, 42.55, 0.71893, 0.54312):
        assert abs(parts["kl"] - decoy) > 1e-4
    assert abs(loss - 13.63719) > 1e-4


def rate_of(run, entry, batch, number, total):
    """The mask rate of a recorded batch."""
    if run == "C":  # the intended schedule: ours
        return mask_rate(number, total)
    if run != "D" or entry["visible"] is None:
        return entry.get("mask_rate") or 0.0
    # D recorded no rates but what they left visible; `block` has three states.
    for rate in (0.0, 0.33, 0.67):
        rng = np.random.RandomState(0)
        visible = [view_code.student_mask(e, curriculum_of("block_mask_tce"), rate, rng).sum() for e in batch]
        if visible == entry["visible"]:
            return rate
    raise AssertionError(f"no mask rate leaves {entry['visible']} tokens visible")


@pytest.mark.parametrize("run", ["A", "B", "C", "D", "E"])
def test_adamw_trajectory(run):
    """Run C by our own schedule; the others by what they recorded (the reference's rates lag behind)."""
    trajectory = json.loads((golden_directory() / "golden_trajectory.json").read_text())
    meta = trajectory["meta"]
    entries = next(value for key, value in trajectory.items() if key.startswith(f"{run}_") and "float32" not in key)
    accumulation = 2 if run == "B" else 1
    optimizer_steps = len(entries) // accumulation
    settings = ConfigDict(
        dict(learning_rate=meta["lr"], warmup_ratio=0.05, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=1.0)
    )
    tx, schedule = make_optimizer(settings, optimizer_steps)
    model_config, params = model("model_llama")
    params = jax.tree.map(jnp.asarray, params)
    opt_state = tx.init(params)
    update = jax.jit(tx.update)
    for number in range(optimizer_steps):
        sums, losses = jax.tree.map(jnp.zeros_like, params), []
        for entry in entries[number * accumulation : (number + 1) * accumulation]:
            strategy = "sequential_token_mask" if run == "E" else "block_mask_tce"
            batch = [examples()[identifier] for identifier in entry["ids"]]
            rate = rate_of(run, entry, batch, number, meta["max_steps"])
            mb, _ = microbatch(batch, curriculum_of(strategy), rate, jnp.float64)
            (loss, parts), grads = step("model_llama", jnp.float64)(params, mb)
            np.testing.assert_allclose(loss, entry["loss"], rtol=1e-9)
            if "ce" in entry:
                np.testing.assert_allclose(parts["ce"], entry["ce"], rtol=1e-9)
            if entry.get("kl") is not None:
                np.testing.assert_allclose(parts["kl"], entry["kl"], rtol=1e-9)
            sums = jax.tree.map(lambda total, grad: total + grad / accumulation, sums, grads)
            losses.append(loss)
        if "lr" in entry:
            np.testing.assert_allclose(schedule(number), entry["lr"], rtol=1e-9, atol=1e-15)
            np.testing.assert_allclose(optax.global_norm(sums), entry["grad_norm_before_clip"], rtol=1e-9)
        updates, opt_state = update(sums, opt_state, params)
        params = optax.apply_updates(params, updates)
        if "after_step" not in entry:
            continue
        after = entry["after_step"]
        np.testing.assert_allclose(optax.global_norm(params), after["param_norm"], rtol=1e-9)
        tensors = dict(to_hf(model_config, params))
        for probe, values in zip(meta["probes"], after["probes"], strict=True):
            index = tuple(slice(*part) if isinstance(part, list) else part for part in probe["index"])
            np.testing.assert_allclose(tensors[probe["param"]][index], values, rtol=1e-7, atol=1e-9)
    if run in ("A", "C"):
        final = np.load(golden_directory() / "golden_trajectory_final_params_A.npz")
        for tensor in final.files:
            np.testing.assert_allclose(tensors[tensor], final[tensor], rtol=1e-6, atol=1e-8)


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
