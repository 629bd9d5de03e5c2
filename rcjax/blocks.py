"""Conversations made of typed blocks, and their token form.

A conversation is a list of turns; a turn is a list of blocks; a block is TEXT, CODE or EXECUTION.
Its string form has no separators besides the seven special tokens:

    <|user|> <|text|> ... <|endofblock|> <|endofmessage|> <|assistant|> <|code|> ... <|endofblock|> <|endofmessage|>

with BOS in front and EOS behind once tokenised. Contents are encoded piece by piece with special
tokens switched off, so a marker's spelling inside somebody's text stays text and can not forge a block.

This module is pure: no files, no devices, no jax. ``data_gen`` imports it and nothing else of rcjax.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np


class BlockType(enum.IntEnum):
    """Type of the block that a token lies in; NONE for role markers, end of message, BOS and EOS."""

    NONE = 0
    TEXT = 1
    CODE = 2
    EXECUTION = 3


class Region(enum.IntEnum):
    """What a token is to the objective: the keys of its weight tables (``rcjax/objective.py``)."""

    PROMPT = 0  # BOS and every user turn
    FRAME = 1  # role marker and end of message of assistant turns before the last
    TEXT = 2  # blocks of assistant turns before the last, their markers included
    CODE = 3
    EXECUTION = 4
    ANSWER = 5  # the last assistant turn, markers included ...
    ANSWER_EXECUTION = 6  # ... but for execution blocks in it
    END = 7  # EOS


USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END_OF_BLOCK = "<|endofblock|>"
END_OF_MESSAGE = "<|endofmessage|>"
ROLE_MARKERS = {"user": USER, "assistant": ASSISTANT}
BLOCK_MARKERS = {
    BlockType.TEXT: "<|text|>",
    BlockType.CODE: "<|code|>",
    BlockType.EXECUTION: "<|execution|>",
}
SPECIAL_TOKENS = (USER, ASSISTANT, *BLOCK_MARKERS.values(), END_OF_BLOCK, END_OF_MESSAGE)

GENERATION = "generation"  # the published name of a plain instruction example
REFLECTION = "reflection"


class ConversationError(ValueError):
    """A conversation that does not have the published form; the message names example and field."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A run of text of one type."""

    type: BlockType
    content: str


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn: role ``user`` or ``assistant``, and its blocks in order."""

    role: str
    blocks: tuple[Block, ...]


@dataclasses.dataclass(frozen=True)
class Conversation:
    """One example before tokenisation. ``type`` is ``generation`` (2 turns) or ``reflection`` (4 turns)."""

    id: str
    type: str
    messages: tuple[Message, ...]

    @classmethod
    def from_json(cls, record: Mapping[str, Any], where: str = "") -> Conversation:
        """Reads the published form ``{type, messages: [{role, content: [{type, content}]}]}``.

        Args:
          record: one parsed JSON line (``id`` optional).
          where: file and line for the error text.

        Raises:
          ConversationError: unknown role, block type or example type; no messages; an assistant turn
            without blocks; an empty answer; a reflection example without a second assistant turn.
        """
        name = str(record.get("id", ""))
        at = " ".join(part for part in (where, f"example {name!r}" if name else "") if part) or "example"

        def fail(what: str) -> ConversationError:
            return ConversationError(f"{at}: {what}")

        kind = record.get("type")
        if kind not in (GENERATION, REFLECTION):
            raise fail(f"field 'type' is {kind!r}, expected 'generation' or 'reflection'")
        raw = record.get("messages")
        if not isinstance(raw, Sequence) or isinstance(raw, str) or not raw:
            raise fail("field 'messages' must be a non-empty list")
        messages = []
        for turn, message in enumerate(raw):
            role = message.get("role") if isinstance(message, Mapping) else None
            if role not in ROLE_MARKERS:
                raise fail(f"messages[{turn}].role is {role!r}, expected 'user' or 'assistant'")
            content = message.get("content")
            if not isinstance(content, Sequence) or isinstance(content, str) or not content:
                raise fail(f"messages[{turn}].content must be a non-empty list of blocks")
            blocks = []
            for index, block in enumerate(content):
                field = f"messages[{turn}].content[{index}]"
                label = block.get("type") if isinstance(block, Mapping) else None
                if label not in ("text", "code", "execution"):
                    raise fail(f"{field}.type is {label!r}, expected 'text', 'code' or 'execution'")
                if not isinstance(block.get("content"), str):
                    raise fail(f"{field}.content must be a string")
                blocks.append(Block(BlockType[label.upper()], block["content"]))
            messages.append(Message(role, tuple(blocks)))
        assistants = [turn for turn, message in enumerate(messages) if message.role == "assistant"]
        if not assistants or assistants[-1] != len(messages) - 1:
            raise fail("the last message must be the assistant's answer")
        if not any(block.content.strip() for block in messages[-1].blocks):
            raise fail("the answer is empty")
        if kind == REFLECTION:
            if len(assistants) < 2 or messages[-2].role != "user":
                raise fail("a reflection example needs a reflection turn, a re-answer instruction and an answer")
            if messages[0].role != "user":
                raise fail("messages[0].role must be 'user': the reflection instruction comes first")
        return cls(name, kind, tuple(messages))

    def to_json(self) -> dict[str, Any]:
        """The published form; ``from_json(c.to_json()) == c``."""
        messages = [
            {
                "role": message.role,
                "content": [{"type": block.type.name.lower(), "content": block.content} for block in message.blocks],
            }
            for message in self.messages
        ]
        return {"id": self.id, "type": self.type, "messages": messages}

    def texts(self) -> Iterable[str]:
        """Contents of all blocks in order."""
        return (block.content for message in self.messages for block in message.blocks)


@dataclasses.dataclass(frozen=True)
class TextCodec:
    """What tokenising needs of a tokenizer, as plain functions and ids.

    ``encode_batch`` must not split off special tokens: marker spellings are ordinary text to it.
    """

    encode_batch: Callable[[Sequence[str]], list[list[int]]]
    decode: Callable[[Sequence[int]], str]
    special_ids: Mapping[str, int]  # the seven SPECIAL_TOKENS
    bos_id: int
    eos_id: int
    pad_id: int
    vocab_size: int  # ids are below it


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One tokenised conversation of L tokens, BOS and EOS included.

    Attributes:
      id: the conversation's id, part of the seed of its random masks.
      kind: ``generation`` or ``reflection``.
      tokens: int32 [L].
      block_types: int8 [L], a BlockType each; a block's marker and its end-of-block belong to it.
      block_ids: int32 [L], number of the block in the example, -1 outside of blocks.
      regions: int8 [L], a Region each.
      reflection: [start, stop) of the reflection sequence, first block marker up to and including the
        last end-of-block; empty for instruction examples.
      answer: [start, stop) of the answer turn, ``<|assistant|>`` up to and including ``<|endofmessage|>``.
    """

    id: str
    kind: str
    tokens: np.ndarray
    block_types: np.ndarray
    block_ids: np.ndarray
    regions: np.ndarray
    reflection: tuple[int, int]
    answer: tuple[int, int]

    def __len__(self) -> int:
        return len(self.tokens)


def encode(conversations: Sequence[Conversation], codec: TextCodec) -> list[Example]:
    """Tokenises conversations; one call of ``codec.encode_batch`` for all of them."""
    pieces = iter(codec.encode_batch([text for conversation in conversations for text in conversation.texts()]))
    return [_assemble(conversation, pieces, codec) for conversation in conversations]


def encode_prompt(conversation_turns: Sequence[Message], codec: TextCodec) -> list[int]:
    """Tokens of finished turns followed by ``<|assistant|>``: what one-off generation starts from."""
    pieces = iter(codec.encode_batch([block.content for turn in conversation_turns for block in turn.blocks]))
    ids = [codec.bos_id]
    for message in conversation_turns:
        ids.append(codec.special_ids[ROLE_MARKERS[message.role]])
        for block in message.blocks:
            ids.append(codec.special_ids[BLOCK_MARKERS[block.type]])
            ids.extend(next(pieces))
            ids.append(codec.special_ids[END_OF_BLOCK])
        ids.append(codec.special_ids[END_OF_MESSAGE])
    ids.append(codec.special_ids[ASSISTANT])
    return ids


def _assemble(conversation: Conversation, pieces: Iterable[list[int]], codec: TextCodec) -> Example:
    special = codec.special_ids
    pieces = iter(pieces)
    tokens: list[int] = []
    types: list[int] = []
    ids: list[int] = []
    regions: list[int] = []

    def put(new: Sequence[int], block_type: BlockType, block: int, region: Region) -> None:
        tokens.extend(new)
        types.extend([block_type] * len(new))
        ids.extend([block] * len(new))
        regions.extend([region] * len(new))

    put([codec.bos_id], BlockType.NONE, -1, Region.PROMPT)
    assistants = [turn for turn, message in enumerate(conversation.messages) if message.role == "assistant"]
    spans: dict[int, tuple[int, int]] = {}
    block_number = 0
    for turn, message in enumerate(conversation.messages):
        last = turn == assistants[-1]
        frame = Region.PROMPT if message.role == "user" else Region.ANSWER if last else Region.FRAME
        start = len(tokens)
        put([special[ROLE_MARKERS[message.role]]], BlockType.NONE, -1, frame)
        for block in message.blocks:
            if message.role == "user":
                region = Region.PROMPT
            elif last:
                region = Region.ANSWER_EXECUTION if block.type == BlockType.EXECUTION else Region.ANSWER
            else:
                region = Region[block.type.name]
            body = [special[BLOCK_MARKERS[block.type]], *next(pieces), special[END_OF_BLOCK]]
            put(body, block.type, block_number, region)
            block_number += 1
        put([special[END_OF_MESSAGE]], BlockType.NONE, -1, frame)
        spans[turn] = (start, len(tokens))
    put([codec.eos_id], BlockType.NONE, -1, Region.END)
    answer = spans[assistants[-1]]
    reflection = (answer[0], answer[0])
    if conversation.type == REFLECTION:
        first = spans[assistants[0]]
        reflection = (first[0] + 1, first[1] - 1)
    return Example(
        id=conversation.id,
        kind=conversation.type,
        tokens=np.asarray(tokens, np.int32),
        block_types=np.asarray(types, np.int8),
        block_ids=np.asarray(ids, np.int32),
        regions=np.asarray(regions, np.int8),
        reflection=reflection,
        answer=answer,
    )


def shorten(example: Example, length: int) -> Example | None:
    """The example with the first blocks of its reflection sequence left out, as few as make it fit.

    Whole blocks go, the oldest first: what is left ends, as before, in the attempt that came right. The last block
    and all other turns stay whole; above all the answer is never cut.

    Args:
      length: most tokens, BOS and EOS included.

    Returns:
      A new example of at most ``length`` tokens (the same one if it fits), or None where no whole blocks can be left
      out to make it so.
    """
    excess = len(example) - length
    if excess <= 0:
        return example
    start, stop = example.reflection
    firsts = np.flatnonzero(np.diff(example.block_ids[start:stop])) + 1  # of the second block and those behind it
    enough = firsts[firsts >= excess]
    if not len(enough):
        return None
    cut = int(enough[0])
    kept = np.ones(len(example), bool)
    kept[start : start + cut] = False
    return dataclasses.replace(
        example,
        tokens=example.tokens[kept],
        block_types=example.block_types[kept],
        block_ids=example.block_ids[kept],
        regions=example.regions[kept],
        reflection=(start, stop - cut),
        answer=(example.answer[0] - cut, example.answer[1] - cut),
    )


def decode(example: Example, codec: TextCodec) -> Conversation:
    """The conversation that ``encode`` was given (exact where the tokenizer's decode is)."""
    markers = {codec.special_ids[text]: role for role, text in ROLE_MARKERS.items()}
    messages: list[Message] = []
    inner = example.block_types != BlockType.NONE
    position = 1
    while position < len(example) - 1:
        token = int(example.tokens[position])
        if not inner[position] and token in markers:
            messages.append(Message(markers[token], ()))
            position += 1
        elif inner[position]:
            stop = position
            while stop < len(example) and example.block_ids[stop] == example.block_ids[position]:
                stop += 1
            content = codec.decode([int(token) for token in example.tokens[position + 1 : stop - 1]])
            block = Block(BlockType(int(example.block_types[position])), content)
            messages[-1] = Message(messages[-1].role, (*messages[-1].blocks, block))
            position = stop
        else:
            position += 1
    return Conversation(example.id, example.kind, tuple(messages))
