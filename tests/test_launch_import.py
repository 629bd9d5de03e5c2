"""A checkpoint in, a checkpoint out, through the door: import, train, be taught, export, inspect, import again."""

import json
import re
import shutil

import numpy as np
import pytest

from rcjax.blocks import SPECIAL_TOKENS
from rcjax.hf.load import load_model, read_json
from tests import launcher
from tests.test_launch import environment, launch, metrics

torch = pytest.importorskip("torch", reason="the checkpoint to start from is made by transformers, which needs torch")
BASE = "configs/base.py"
TEXTS = ["def add(a, b):\n    return a + b", "Write a function that adds two numbers.", "assert add(1, 2) == 3"] * 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A Qwen2 that knows nothing of blocks: no BOS, a table larger than its tokenizer, several files."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer) + 30, num_key_value_heads=1, tie_word_embeddings=True, eos_token_id=0, **shape
    )
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("checkpoint") / "base"
    transformers.Qwen2ForCausalLM(config).save_pretrained(directory, max_shard_size="40KB")
    tokenizer.save_pretrained(directory)
    assert len(list(directory.glob("*.safetensors"))) > 1
    return directory


def fields(checkpoint, *more):
    return [
        *("build.problems=40", "build.heldout=2", "build.instruction_share=0.8", "build.reflection_share=0.8"),
        *("data.max_length=1200", "packing.row_length=2400", "train.batch_size=2", "train.steps=4"),
        *("checkpoint.every=2", "train.log_every=1", "optimizer.learning_rate=1e-3", "evaluation.max_new_tokens=8"),
        *(f"model.init={checkpoint}", *more),
    ]


@pytest.fixture(scope="module")
def trained(checkpoint, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "imported"
    launch("--mode=train", f"--workdir={workdir}", config=BASE, fields=fields(checkpoint))
    return workdir


@pytest.fixture(scope="module")
def exported(trained):
    """Of the first checkpoint and of the last; the workdir remembers its config."""
    places = {}
    for step, dtype in ((2, "float32"), (None, "bfloat16")):
        places[step] = trained.parent / f"export-{step}"
        flags = ["--mode=export", f"--workdir={trained}", f"--output={places[step]}", f"--dtype={dtype}"]
        flags += ["--max_shard_size=50KB"] + ([f"--step={step}"] if step else [])
        run(*flags)
    return places


def run(*flags, check=True):
    done = launcher.run(list(flags), environment())
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def test_training_starts_from_the_checkpoint(checkpoint, trained):
    rows = metrics(trained)
    assert len(rows) == 4
    assert rows[0]["learning_rate"] == 0  # the first step changes nothing: its loss is the checkpoint's own
    assert 4 < rows[0]["ce"] < 7  # ln 300 = 5.7
    tokenizer = json.loads((trained / "tokenizer" / "tokenizer.json").read_text())
    assert set(SPECIAL_TOKENS) <= {token["content"] for token in tokenizer["added_tokens"]}
    model = read_json(trained / "model.json")
    assert model["model_type"] == "qwen2"
    assert model["vocab_size"] == 290 + 7  # the checkpoint's padding went, the block tokens came
    assert model["vocab_multiple"] == 128


def test_export_takes_the_step_that_is_asked_for(checkpoint, trained, exported):
    import transformers

    _, params = load_model(checkpoint)
    early, early_params = load_model(exported[2])
    late, late_params = load_model(exported[None])
    assert (early.family, early.vocab_size, late.vocab_size) == ("qwen2", 297, 297)
    early_rows, late_rows, rows = (tree["embed"]["embedding"] for tree in (early_params, late_params, params))
    assert early_rows.dtype == np.float32
    assert late_rows.dtype.name == "bfloat16"
    # Adam moves an entry by at most the learning rate a step, and the first step has rate 0.
    assert 0 < np.abs(early_rows[:290] - rows[:290]).max() <= 1.1e-3
    assert np.abs(late_rows[:290].astype(np.float32) - rows[:290]).max() > 1.5e-3
    assert len(list(exported[2].glob("model-*.safetensors"))) > 1
    peer = transformers.AutoModelForCausalLM.from_pretrained(exported[2])
    assert type(peer).__name__ == "Qwen2ForCausalLM"
    assert peer.get_input_embeddings().weight.shape == (297, 32)
    assert f"| base model | `{checkpoint}` |" in (exported[2] / "README.md").read_text()
    missing = run("--mode=export", f"--workdir={trained}", "--output=/nowhere", "--step=3", check=False)
    assert missing.returncode == 2
    assert "no checkpoint of step 3" in missing.stderr
    assert "there are 2, 4" in missing.stderr


def test_importing_an_export_changes_nothing(exported, trained):
    from rcjax.hf.tokenizer import load_tokenizer
    from rcjax.hf.vocabulary import add_block_tokens

    before = load_tokenizer(exported[2])
    after, plan = add_block_tokens(before)
    assert after.get_vocab() == before.get_vocab()
    assert not plan.means
    assert plan.new_size == plan.old_size == 297


def taught(trained, exported, workdir, name, **options):
    """A run that starts from the export and is taught by ``name``."""
    more = [f"teacher.{key}={value}" for key, value in (("name", name), *options.items())]
    given = fields(exported[2], "objective.name=blockwise", f"data.train={trained / 'data'}", *more)
    launch("--mode=train", f"--workdir={workdir}", config=BASE, fields=given)
    return metrics(workdir)


def test_a_frozen_teacher_teaches(trained, exported, tmp_path):
    rows = taught(trained, exported, tmp_path / "w", "frozen", model=exported[2])
    assert rows[0]["kl"] > 1e-6  # the student sees less than its teacher, of the same weights at step 0
    refused = run(
        "--mode=export", f"--workdir={tmp_path / 'w'}", f"--output={tmp_path / 'o'}", "--weights=ema", check=False
    )
    assert refused.returncode == 2
    assert "keeps no moving average" in refused.stderr


def test_a_moving_average_teaches_survives_a_resume_and_is_exported(trained, exported, tmp_path):
    rows = taught(trained, exported, tmp_path / "w", "ema", decay=0.5)
    assert rows[0]["kl"] > 1e-6
    # Killed behind step 2 and taken up again: the same numbers, so the average was in the checkpoint.
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "w", again)
    shutil.rmtree(again / "checkpoints" / "4")
    assert taught(trained, exported, again, "ema", decay=0.5) == rows
    run("--mode=export", f"--workdir={again}", f"--output={tmp_path / 'average'}", "--weights=ema")
    run("--mode=export", f"--workdir={again}", f"--output={tmp_path / 'plain'}")
    average, plain = (load_model(tmp_path / name)[1]["norm"]["scale"] for name in ("average", "plain"))
    assert 0 < np.abs(average - plain).max() < 4e-3


def test_another_shape_than_the_checkpoint_has_is_refused(checkpoint, trained, tmp_path):
    given = dict(config=BASE, fields=fields(checkpoint, f"data.train={trained / 'data'}", "model.hidden_size=64"))
    done = launch("--mode=train", f"--workdir={tmp_path / 'w'}", check=False, **given)
    assert done.returncode == 2, done.stderr
    assert re.search("config.model.hidden_size is 64, but the checkpoint .* has 32", done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "message"), [("frozen", "config.teacher.model"), ("frodo", "config.teacher.name is 'frodo'")]
)
def test_a_teacher_that_is_none_is_refused(exported, name, message):
    from configs import base
    from rcjax.hf.base_model import open_teacher
    from rcjax.hf.tokenizer import load_tokenizer
    from rcjax.train.program import average_of

    settings = base.get_config().teacher
    settings.name = name
    with pytest.raises(ValueError, match=message):
        average_of(settings) or open_teacher(settings, load_model(exported[2])[0], load_tokenizer(exported[2]))


def test_a_teacher_of_another_vocabulary_is_refused_with_the_first_difference(exported, tmp_path):
    other = shutil.copytree(exported[2], tmp_path / "other")
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace('"content": "<|code|>"', '"content": "<|kode|>"'))
    from configs import base
    from rcjax.hf.base_model import open_teacher
    from rcjax.hf.tokenizer import load_tokenizer

    settings = base.get_config().teacher
    settings.name, settings.model = "frozen", str(other)
    difference = r"another vocabulary: token 29\d is '<\|kode\|>' there and '<\|code\|>' in this run"
    with pytest.raises(ValueError, match=difference):
        open_teacher(settings, load_model(exported[2])[0], load_tokenizer(exported[2]))


def test_inspect_tells_what_a_checkpoint_is(checkpoint, exported):
    said = run("--mode=inspect", f"--model={checkpoint}").stdout
    parameters = sum(leaf.size for leaf in _leaves(load_model(checkpoint)[1]))
    assert "qwen2" in said
    assert f"{parameters:,}" in said
    assert run("--mode=inspect", "--model=/no/such/place", check=False).returncode == 2


def _leaves(tree):
    return [leaf for value in tree.values() for leaf in (_leaves(value) if isinstance(value, dict) else [value])]
