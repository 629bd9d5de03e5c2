"""Prompts in, programs out: one-off generation in the training format."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

from rcjax.blocks import END_OF_MESSAGE, Block, BlockType, Message, TextCodec, encode_prompt


def answers(
    generate: Callable[..., list[list[int]]],
    codec: TextCodec,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    on_advance: Callable[[int], None] | None = None,
) -> list[str]:
    """What the model says to each prompt in one go, as text without block markers.

    Args:
      generate: ``rcjax.decode.generate`` bound to a model.
      codec: the tokenizer.
      prompts: task statements, each put as the one user turn.
    """
    turns = [(Message("user", (Block(BlockType.TEXT, prompt),)),) for prompt in prompts]
    ids = generate(
        [encode_prompt(turn, codec) for turn in turns],
        max_new_tokens=max_new_tokens,
        stop_ids=(codec.eos_id, codec.special_ids[END_OF_MESSAGE]),
        batch_size=batch_size,
        on_advance=on_advance,
    )
    markers = set(codec.special_ids.values()) | {codec.bos_id, codec.eos_id, codec.pad_id}

    def text(answer: list[int]) -> str:
        # Block by block: a tokenizer may treat what follows a marker otherwise than what follows a word.
        runs = itertools.groupby(answer, key=lambda token: token in markers)
        return "".join(codec.decode(list(run)) for is_marker, run in runs if not is_marker)

    return [text(answer) for answer in ids]


def generate_programs(
    directory: str, prompts: Sequence[str], max_new_tokens: int, *, num_samples: int = 1, **sampling: float | int
) -> list[str]:
    """Programs that an exported model writes, ``num_samples`` a prompt, one prompt behind the other.

    Args:
      sampling: ``temperature``, ``top_p``, ``top_k`` and ``seed`` of ``rcjax.decode.generate``.
    """
    from rcjax.decode import generate
    from rcjax.evaluation.score import extract_code
    from rcjax.hf.load import load_model
    from rcjax.hf.tokenizer import codec, load_tokenizer

    config, params = load_model(directory)
    said = answers(
        functools.partial(generate, config, params, **sampling),
        codec(load_tokenizer(directory)),
        [prompt for prompt in prompts for _ in range(num_samples)],
        max_new_tokens=max_new_tokens,
    )
    return [extract_code(text).rstrip() for text in said]
