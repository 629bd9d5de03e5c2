"""Any tokenizer learns the training format, keeps every id that it had, and loses no content."""

from __future__ import annotations

import functools
import json
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer

from rcjax import blocks
from rcjax.blocks import SPECIAL_TOKENS, Block, BlockType, Message
from rcjax.hf.tokenizer import CHAT_TEMPLATE, TokenizerError, codec, load_tokenizer, save_tokenizer, train_tokenizer
from rcjax.hf.vocabulary import VocabularyPlan, add_block_tokens
from tests.hf.test_tokenizer import turns
from tests.hf.tokenizer_kinds import KINDS, byte_level, sentencepiece


@functools.cache
def base(kind: str):
    return KINDS[kind]()


@functools.cache
def extended(kind: str):
    return add_block_tokens(base(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_old_ids_stay_and_new_ones_are_the_mean_of_their_pieces(kind):
    old = base(kind)
    state = old.backend_tokenizer.to_str()
    tokenizer, plan = extended(kind)
    before, after = old.get_vocab(), tokenizer.get_vocab()
    assert after.items() >= before.items()
    assert set(after) - set(before) == set(SPECIAL_TOKENS)
    assert plan.old_size == max(before.values()) + 1
    assert plan.new_size == max(after.values()) + 1
    if kind != "gaps":
        assert (plan.old_size, plan.new_size) == (len(old), len(tokenizer))
        assert [after[token] for token in SPECIAL_TOKENS] == list(range(len(old), len(old) + 7))
    assert set(plan.means) == {after[token] for token in SPECIAL_TOKENS}
    assert not set(plan.means) & set(before.values())
    for token in SPECIAL_TOKENS:
        pieces = old(token, add_special_tokens=False)["input_ids"]
        assert plan.means[after[token]] == tuple(pieces)
        assert len(pieces) > 2
        assert old.decode(pieces) == token
    # What came in is as it was.
    assert old.backend_tokenizer.to_str() == state
    assert old.chat_template != CHAT_TEMPLATE


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_time_changes_nothing(kind):
    tokenizer, plan = extended(kind)
    again, none = add_block_tokens(tokenizer, bos_token_id=0)
    assert none == VocabularyPlan(plan.new_size, plan.new_size, {})
    assert json.loads(again.backend_tokenizer.to_str()) == json.loads(tokenizer.backend_tokenizer.to_str())
    assert (again.bos_token, again.eos_token, again.pad_token) == (
        tokenizer.bos_token,
        tokenizer.eos_token,
        tokenizer.pad_token,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_renders_and_encodes_the_same(kind, tmp_path):
    tokenizer, plan = extended(kind)
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "config.json").write_text('{"model_type": "llama"}')
    conversation = blocks.Conversation("x", blocks.REFLECTION, turns())
    want = blocks.encode([conversation], codec(tokenizer))[0].tokens.tolist()
    prompt = blocks.encode_prompt([Message("user", (Block(BlockType.TEXT, "Add 1 and 2.\n"),))], codec(tokenizer))
    for loaded in (
        tokenizer,
        load_tokenizer(tmp_path / "tokenizer"),
        AutoTokenizer.from_pretrained(tmp_path / "tokenizer"),
    ):
        plain = codec(loaded)
        assert plain.vocab_size == plan.new_size
        assert (loaded.bos_token_id, loaded.eos_token_id) == (plain.bos_id, plain.eos_id)
        assert loaded.pad_token_id == plain.pad_id
        assert loaded.chat_template == CHAT_TEMPLATE
        example = blocks.encode([conversation], plain)[0]
        assert example.tokens.tolist() == want
        assert blocks.decode(example, plain) == conversation
        assert loaded.apply_chat_template(conversation.to_json()["messages"], return_dict=False) == want
        chat = [{"role": "user", "content": "Add 1 and 2.\n"}]
        assert loaded.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) == prompt
        assert set(SPECIAL_TOKENS) <= set(loaded.all_special_tokens)
        assert loaded.decode(want, skip_special_tokens=True).count("<|") == 0


CONTENTS = st.one_of(
    st.text(),
    st.text(alphabet="ab \n\t<|>_/s▁", max_size=12),
    st.sampled_from(
        ["<|user|>", "</s>", "<|endofblock|> x", " \t\n  ", "<tool_call>", "<|im_end|>", "<0x41>", "<unk>"]
    ),
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80, deadline=None)
@given(texts=st.lists(CONTENTS, max_size=4))
def test_any_content_survives_and_forges_no_marker(kind, texts):
    plain = codec(extended(kind)[0])
    if base(kind).backend_tokenizer.normalizer is not None or "metaspace" in kind:
        # Changed by the tokenizer itself, in any use of it: Unicode's form, or the character that stands for a space.
        change = "NFC" if "▁" not in base(kind).get_vocab() else None
        texts = [unicodedata.normalize(change, text) if change else text.replace("▁", " ") for text in texts]
    special = set(plain.special_ids.values()) | {plain.bos_id, plain.eos_id, plain.pad_id}
    for text, ids in zip(texts, plain.encode_batch(texts), strict=True):
        assert plain.decode(ids) == text
        assert not special & set(ids)
    conversation = blocks.Conversation(
        "x",
        blocks.GENERATION,
        (
            Message("user", tuple(Block(BlockType.TEXT, text) for text in texts)),
            Message("assistant", tuple(Block(BlockType.CODE, text) for text in [*texts, "x"])),
        ),
    )
    assert blocks.decode(blocks.encode([conversation], plain)[0], plain) == conversation


def test_a_metaspace_that_is_not_doubled_loses_one_space_and_nothing_else():
    """Known and left alone: in such a tokenizer "x" and " x" are the same tokens behind any special token."""
    plain = codec(add_block_tokens(sentencepiece("always"))[0])
    assert plain.encode_batch([" x"]) == plain.encode_batch(["x"])
    for text in ("x", "def f():\n    return 1\n", "\n  x", "x ", ""):
        assert plain.decode(plain.encode_batch([text])[0]) == text


def test_bos_and_pad_are_settled():
    kept, _ = add_block_tokens(sentencepiece(), bos_token_id=0)
    assert (kept.bos_token, kept.eos_token, kept.pad_token) == ("<s>", "</s>", "</s>")
    qwen = byte_level()
    named, _ = add_block_tokens(qwen, bos_token_id=qwen.convert_tokens_to_ids("<|endoftext|>"))
    assert (named.bos_token, named.pad_token) == ("<|endoftext|>", "<|endoftext|>")
    ids = named.apply_chat_template([{"role": "user", "content": "x"}], return_dict=False)
    assert ids[0] == qwen.convert_tokens_to_ids("<|endoftext|>")
    for other in (None, qwen.convert_tokens_to_ids("use"), qwen.convert_tokens_to_ids("<tool_call>"), 10**6):
        assert add_block_tokens(qwen, bos_token_id=other)[0].bos_token == "<|im_end|>"
    assert qwen.bos_token is None
    assert "<|im_start|>" in named.all_special_tokens


def test_markers_that_exist_keep_their_ids_and_become_special():
    tokenizer = byte_level()
    tokenizer.add_tokens(["<|user|>", AddedToken("<|code|>", lstrip=True, rstrip=True, special=True)])
    size = len(tokenizer)
    new, plan = add_block_tokens(tokenizer)
    ids = new.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids[0] == size - 2
    assert ids[3] == size - 1
    assert sorted(plan.means) == list(range(size, size + 5))
    assert plan.new_size == size + 5
    plain = codec(new)
    conversation = blocks.Conversation("x", blocks.REFLECTION, turns())
    want = blocks.encode([conversation], plain)[0].tokens.tolist()
    assert new.apply_chat_template(conversation.to_json()["messages"], return_dict=False) == want
    indented = Message("assistant", (Block(BlockType.CODE, "  x  "),))
    ids = blocks.encode([blocks.Conversation("x", blocks.GENERATION, (indented,))], plain)[0].tokens.tolist()
    chat = [{"role": "assistant", "content": [{"type": "code", "content": "  x  "}]}]
    assert new.apply_chat_template(chat, return_dict=False) == ids


def test_a_tokenizer_of_ours_has_them_already():
    tokenizer = train_tokenizer(["abc"], 300)
    _, plan = add_block_tokens(tokenizer)
    assert plan == VocabularyPlan(len(tokenizer), len(tokenizer), {})


def test_what_can_not_serve_is_refused():
    tokenizer = byte_level()
    tokenizer.eos_token = None
    with pytest.raises(TokenizerError, match=r"^the tokenizer has no eos_token; set it in its tokenizer_config\.json$"):
        add_block_tokens(tokenizer)
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {character: number for number, character in enumerate("<|>abcdefghijklmnopqrstuvwxyz")}
    vocab["far"] = len(vocab) + 3
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="a")
    with pytest.raises(
        TokenizerError, match=r"ids have gaps, so that .* would get the id 32 of another token; renumber"
    ):
        add_block_tokens(tokenizer)


def test_a_tokenizer_in_another_form_is_refused_with_the_mend(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(
        TokenizerError,
        match=r"holds tokenizer\.model but no tokenizer\.json, .*AutoTokenizer\.from_pretrained\('.*'\)\.save",
    ):
        load_tokenizer(tmp_path)
