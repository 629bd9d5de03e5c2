"""Examples of the published shape, with random tokens."""

from __future__ import annotations

import dataclasses

import numpy as np

from rcjax.blocks import SPECIAL_TOKENS, Block, BlockType, Conversation, Example, Message, TextCodec, encode

FIRST_WORD = 3 + len(SPECIAL_TOKENS)


def published_shape(
    count: int,
    seed: int = 0,
    *,
    median: float = 1500,
    shortest: float = 600,
    longest: float = 3900,
    vocab_size: int = 1024,
) -> list[Example]:
    """Reflection examples of log-normal length, about 70 % of their tokens in the reflection part.

    One to three rounds of thoughts, an attempt and its feedback; instructions take about 10 % of an example and the
    answer about 20 %. Contents are random tokens below ``vocab_size``.
    """
    rng = np.random.default_rng(seed)
    markers = {text: 3 + number for number, text in enumerate(SPECIAL_TOKENS)}
    codec = TextCodec(
        lambda texts: [[FIRST_WORD] * len(text) for text in texts],
        lambda ids: "",
        markers,
        bos_id=0,
        eos_id=1,
        pad_id=2,
        vocab_size=vocab_size,
    )

    def block(kind: BlockType, tokens: float) -> Block:
        return Block(kind, "x" * max(1, round(tokens)))

    conversations = []
    for number in range(count):
        whole = float(np.clip(rng.lognormal(np.log(median), 0.45), shortest, longest))
        rounds = int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))
        blocks = []
        for _ in range(rounds + 1):  # the last attempt is the one that passes
            part = 0.7 * whole / (rounds + 1)
            blocks += [block(BlockType.TEXT, 0.35 * part), block(BlockType.CODE, 0.45 * part)]
            blocks += [block(BlockType.EXECUTION, 0.2 * part)]
        messages = (
            Message("user", (block(BlockType.TEXT, 0.07 * whole),)),
            Message("assistant", tuple(blocks)),
            Message("user", (block(BlockType.TEXT, 0.03 * whole),)),
            Message("assistant", (block(BlockType.TEXT, 0.05 * whole), block(BlockType.CODE, 0.15 * whole))),
        )
        conversations.append(Conversation(str(number), "reflection", messages))
    examples = []
    for example in encode(conversations, codec):
        words = rng.integers(FIRST_WORD, vocab_size, len(example), dtype=np.int32)
        tokens = np.where(example.tokens == FIRST_WORD, words, example.tokens).astype(np.int32)
        examples.append(dataclasses.replace(example, tokens=tokens))
    return examples
