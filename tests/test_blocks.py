"""Conversations keep their form through JSON and tokens, and nothing inside a text can forge a block."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rcjax.blocks import (
    SPECIAL_TOKENS,
    Block,
    BlockType,
    Conversation,
    ConversationError,
    Message,
    Region,
    decode,
    encode,
    shorten,
)
from rcjax.hf.tokenizer import codec, train_tokenizer
from tests.examples import character_codec, random_conversation

TEXTS = st.one_of(
    st.text(max_size=30),
    st.lists(st.sampled_from([*SPECIAL_TOKENS, "<s>", "</s>", "def f(x):\n    ", " ", "x"]), max_size=5).map("".join),
)
BLOCKS = st.builds(Block, st.sampled_from([BlockType.TEXT, BlockType.CODE, BlockType.EXECUTION]), TEXTS)


def message(role):
    return st.lists(BLOCKS, min_size=1, max_size=4).map(lambda blocks: Message(role, tuple(blocks)))


ANSWER = TEXTS.filter(str.strip).map(lambda text: Message("assistant", (Block(BlockType.TEXT, text),)))
CONVERSATIONS = st.one_of(
    st.builds(lambda *turns: Conversation("g", "generation", turns), message("user"), ANSWER),
    st.builds(
        lambda *turns: Conversation("r", "reflection", turns),
        message("user"),
        message("assistant"),
        message("user"),
        ANSWER,
    ),
)


@pytest.fixture(scope="module")
def text_codec():
    corpus = ["def solve(xs):\n    return sum(xs)\n", "Write a function that adds numbers. <|code|> as text"] * 20
    return codec(train_tokenizer(corpus, 320))


@settings(deadline=None, max_examples=150)
@given(conversation=CONVERSATIONS)
def test_round_trip_through_json_and_tokens(conversation, text_codec):
    assert Conversation.from_json(json.loads(json.dumps(conversation.to_json()))) == conversation
    (example,) = encode([conversation], text_codec)
    assert decode(example, text_codec) == conversation


@settings(deadline=None, max_examples=150)
@given(conversation=CONVERSATIONS)
def test_special_ids_stand_only_where_the_structure_puts_them(conversation, text_codec):
    (example,) = encode([conversation], text_codec)
    special = set(text_codec.special_ids.values()) | {text_codec.bos_id, text_codec.eos_id}
    blocks = sum(len(turn.blocks) for turn in conversation.messages)
    assert int(np.isin(example.tokens, list(special)).sum()) == 2 + 2 * len(conversation.messages) + 2 * blocks
    assert example.tokens[0] == text_codec.bos_id
    assert example.tokens[-1] == text_codec.eos_id
    assert len(np.unique(example.block_ids)) == blocks + 1


def test_regions_and_spans(text_codec):
    text, code, run = (Block(kind, "x = 1") for kind in (BlockType.TEXT, BlockType.CODE, BlockType.EXECUTION))
    turns = (
        Message("user", (text,)),
        Message("assistant", (text, code, run)),
        Message("user", (text,)),
        Message("assistant", (text, run)),
    )
    (example,) = encode([Conversation("r", "reflection", turns)], text_codec)
    names = [Region(region).name for region in example.regions]
    runs = [name for index, name in enumerate(names) if index == 0 or names[index - 1] != name]
    assert runs == [
        *("PROMPT", "FRAME", "TEXT", "CODE", "EXECUTION", "FRAME", "PROMPT", "ANSWER", "ANSWER_EXECUTION"),
        *("ANSWER", "END"),
    ]
    start, stop = example.reflection
    assert names[start - 1] == "FRAME"
    assert names[stop] == "FRAME"
    assert set(names[start:stop]) == {"TEXT", "CODE", "EXECUTION"}
    start, stop = example.answer
    assert names[start - 1] == "PROMPT"
    assert names[stop] == "END"


GOOD = {
    "id": "x",
    "type": "reflection",
    "messages": [
        {"role": role, "content": [{"type": "text", "content": "hello"}]}
        for role in ("user", "assistant", "user", "assistant")
    ],
}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda r: r.update(type="poem"), "field 'type' is 'poem'"),
        (lambda r: r.update(messages=[]), "'messages' must be a non-empty list"),
        (lambda r: r["messages"][1].update(role="system"), r"messages\[1\]\.role is 'system'"),
        (lambda r: r["messages"][1].update(content=[]), r"messages\[1\]\.content must be a non-empty list"),
        (lambda r: r["messages"][0]["content"][0].update(type="image"), r"content\[0\]\.type is 'image'"),
        (lambda r: r["messages"][0]["content"][0].update(content=3), r"content\[0\]\.content must be a string"),
        (lambda r: r["messages"].pop(), "last message must be the assistant's answer"),
        (lambda r: r["messages"][3]["content"][0].update(content=" \n"), "the answer is empty"),
        (lambda r: r.update(messages=r["messages"][:2]), "needs a reflection turn"),
    ],
)
def test_wrong_form_is_refused_by_example_and_field(change, complaint):
    record = json.loads(json.dumps(GOOD))
    Conversation.from_json(record)
    change(record)
    with pytest.raises(ConversationError, match=complaint) as caught:
        Conversation.from_json(record, "file.jsonl:7")
    assert "file.jsonl:7 example 'x'" in str(caught.value)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 120))
def test_shortening_leaves_out_whole_blocks_from_the_front_of_the_reflection(seed, length):
    rng = np.random.default_rng(seed)
    conversation = random_conversation(rng, "reflection", rounds=4)
    (example,) = encode([conversation], character_codec())
    short = shorten(example, length)
    messages = list(conversation.messages)
    blocks = messages[1].blocks
    # What is left must be what encoding the conversation without its first blocks gives.
    for gone in range(len(blocks)):
        messages[1] = Message("assistant", blocks[gone:])
        (expected,) = encode([Conversation("x", "reflection", tuple(messages))], character_codec())
        if len(expected) <= length:
            break
    else:
        assert short is None
        return
    for field in ("tokens", "block_types", "regions"):
        np.testing.assert_array_equal(getattr(short, field), getattr(expected, field))
    assert (short.reflection, short.answer) == (expected.reflection, expected.answer)
    assert [len(set(x.block_ids[x.block_ids >= 0])) for x in (short, expected)] == [
        sum(len(message.blocks) for message in messages)
    ] * 2
    if len(example) <= length:
        assert short is example
