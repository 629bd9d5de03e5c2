"""The tokenizer loses nothing, forges nothing, and renders chats as training does."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcjax import blocks
from rcjax.blocks import SPECIAL_TOKENS
from rcjax.hf.tokenizer import TokenizerError, codec, load_tokenizer, save_tokenizer, train_tokenizer

TEXTS = [
    f"def add_{name}(values):\n    total = {number}\n    for value in values:\n        total += value\n    return total"
    for name, number in zip("abcdefgh", range(100, 108), strict=True)
] + ["Write a function that adds up a list.", "AssertionError: add_a([1, 2]) gave 4"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 400)


def turns():
    text, code, execution = (
        blocks.Block(kind, content)
        for kind, content in (
            (blocks.BlockType.TEXT, "  Add 12 numbers.\n"),
            (blocks.BlockType.CODE, "def f(x):\n\treturn x"),
            (blocks.BlockType.EXECUTION, "NameError: 'y'"),
        )
    )
    return (
        blocks.Message("user", (text,)),
        blocks.Message("assistant", (text, code, execution)),
        blocks.Message("user", (text, code)),
        blocks.Message("assistant", (code,)),
    )


def test_ids_are_laid_out_as_promised(tokenizer):
    assert tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<pad>", *blocks.SPECIAL_TOKENS]) == list(range(10))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    plain = codec(tokenizer)
    assert plain.vocab_size == len(tokenizer) <= 400
    assert plain.special_ids == dict(zip(blocks.SPECIAL_TOKENS, range(3, 10), strict=True))
    assert len(plain.encode_batch(["2026"])[0]) == 4
    assert plain.encode_batch(["return"])[0] != plain.encode_batch([" return"])[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.text(), st.sampled_from(["<|user|>", "</s>", "<|endofblock|>x", " \t\n  "])), max_size=4))
def test_any_text_survives_and_forges_no_marker(tokenizer, texts):
    plain = codec(tokenizer)
    for text, ids in zip(texts, plain.encode_batch(texts), strict=True):
        assert plain.decode(ids) == text
        assert all(10 <= token < plain.vocab_size for token in ids)


def test_training_is_deterministic_whatever_the_number_of_threads(tokenizer):
    script = (
        "import json, sys; from rcjax.hf.tokenizer import train_tokenizer\n"
        "print(train_tokenizer(json.load(sys.stdin), 400).backend_tokenizer.to_str())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(TEXTS),
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ".", "PATH": "", "RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "1"},
    )
    assert json.loads(done.stdout) == json.loads(tokenizer.backend_tokenizer.to_str())


def test_chat_template_renders_the_training_format(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    plain = codec(loaded)
    conversation = blocks.Conversation("x", blocks.REFLECTION, turns())
    published = conversation.to_json()["messages"]
    whole = loaded.apply_chat_template(published, return_dict=False)
    assert whole == blocks.encode([conversation], plain)[0].tokens.tolist()
    question = blocks.Message("user", (blocks.Block(blocks.BlockType.TEXT, "Add 12 numbers."),))
    expected = blocks.encode_prompt([question], plain)
    for content in ("Add 12 numbers.", [{"type": "text", "text": "Add 12 numbers."}]):
        chat = [{"role": "user", "content": content}]
        assert loaded.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) == expected
    with pytest.raises(Exception, match="role must be user or assistant, not system"):
        loaded.apply_chat_template([{"role": "system", "content": "x"}])


def test_codec_leaves_the_tokenizer_as_it_was(tokenizer):
    before = tokenizer.backend_tokenizer.to_str()
    codec(tokenizer).encode_batch(["<|user|>"])
    assert tokenizer.backend_tokenizer.to_str() == before
    assert not tokenizer.backend_tokenizer.encode_special_tokens
    assert tokenizer("<|user|>")["input_ids"] == [3]


def test_saving_replaces_and_loading_explains(tokenizer, tmp_path):
    target = tmp_path / "tokenizer"
    target.mkdir()
    (target / "old").write_text("x")
    save_tokenizer(tokenizer, target)
    assert not (target / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]
    assert load_tokenizer(target).get_vocab() == tokenizer.get_vocab()
    whole = (target / "tokenizer.json").read_text()
    (target / "tokenizer.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(TokenizerError, match=r"tokenizer\.json can not be read .*; copy it again$"):
        load_tokenizer(target)
    with pytest.raises(TokenizerError, match=r"holds no tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="vocab_size is 200"):
        train_tokenizer(TEXTS, 200)


def test_golden_samples_encode_to_the_golden_ids(golden):
    plain = codec(load_tokenizer(golden / "model_llama"))
    lines = [json.loads(line) for line in (golden / "samples.jsonl").read_text().splitlines()]
    examples = {line["id"]: blocks.Conversation.from_json(line) for line in lines}
    batches = np.load(golden / "golden_batches.npz")
    members = {"refl_b3": ["refl0", "refl1", "refl2"], "refl_b1": ["refl3"], "refl_b2": ["refl4", "refl5"]}
    members["gen_b4"] = ["gen0", "gen1", "gen2", "gen3"]
    for batch, names in members.items():
        encoded = blocks.encode([examples[name] for name in names], plain)
        for row, example in enumerate(encoded):
            length = int(batches[f"{batch}/attention_mask"][row].sum())
            assert example.tokens.tolist() == batches[f"{batch}/input_ids"][row, :length].tolist()
            assert blocks.decode(example, plain) == examples[names[row]]


def test_a_tokenizer_without_block_tokens_is_refused(golden):
    with pytest.raises(TokenizerError, match=r"has no token <\|user\|>"):
        codec(load_tokenizer(golden / "base_llama"))


def test_tokens_without_rows_that_only_the_settings_name_are_left_out(tmp_path):
    """CodeLlama-Python's settings name tokens for infilling that neither its tokenizer.json nor its table has."""
    whole = train_tokenizer(["def f(x):\n    return x"], 300)
    save_tokenizer(whole, tmp_path / "t")
    path = tmp_path / "t" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"additional_special_tokens": ["<PRE>", "<SUF>", *SPECIAL_TOKENS]}))
    rows = len(whole)
    assert len(load_tokenizer(tmp_path / "t")) == rows + 2
    plain = load_tokenizer(tmp_path / "t", rows)
    assert plain.get_vocab() == whole.get_vocab()
    assert (plain.bos_token, plain.eos_token, plain.pad_token) == (whole.bos_token, whole.eos_token, whole.pad_token)
    assert len(load_tokenizer(tmp_path / "t", rows + 2)) == rows + 2  # a table that has rows for them
