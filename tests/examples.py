"""Random conversations and a tokenizer made of single characters: exact, quick, no files."""

from __future__ import annotations

import numpy as np

from rcjax.blocks import SPECIAL_TOKENS, Block, BlockType, Conversation, Example, Message, TextCodec, encode

BOS, EOS, PAD = 0, 1, 2
FIRST_CHARACTER = 3 + len(SPECIAL_TOKENS)
VOCABULARY = 64


def character_codec() -> TextCodec:
    """One token a character: ord modulo what fits. Decoding is not its job here."""
    room = VOCABULARY - FIRST_CHARACTER

    def encode_batch(texts):
        return [[FIRST_CHARACTER + ord(character) % room for character in text] for text in texts]

    special = {text: 3 + number for number, text in enumerate(SPECIAL_TOKENS)}
    return TextCodec(encode_batch, lambda ids: "", special, BOS, EOS, PAD, VOCABULARY)


def random_text(rng: np.random.Generator, most: int = 8) -> str:
    """1 to ``most`` letters."""
    return "".join(rng.choice(list("abcdefghij xyz"), int(rng.integers(1, most + 1)))) or "a"


def random_conversation(rng: np.random.Generator, kind: str, name: str = "x", rounds: int = 2) -> Conversation:
    """A conversation of the given type with random contents."""

    def text(kind=BlockType.TEXT):
        return Block(kind, random_text(rng))

    answer = Message("assistant", (text(),))
    ask = Message("user", (text(),))
    if kind == "generation":
        return Conversation(name, kind, (ask, answer))
    blocks = []
    for _ in range(int(rng.integers(1, rounds + 1))):
        blocks += [text(), text(BlockType.CODE), text(BlockType.EXECUTION)]
    if rng.random() < 0.5:
        blocks.append(text())
    return Conversation(name, kind, (Message("user", (text(),)), Message("assistant", tuple(blocks)), ask, answer))


def random_examples(seed: int, count: int, reflection_share: float = 0.7) -> list[Example]:
    """Tokenised random conversations."""
    rng = np.random.default_rng(seed)
    kinds = ["reflection" if rng.random() < reflection_share else "generation" for _ in range(count)]
    return encode([random_conversation(rng, kind, f"e{i}") for i, kind in enumerate(kinds)], character_codec())
