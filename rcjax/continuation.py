"""A model as a partner in a dialogue that is interrupted: it writes blocks until it wants to see an execution.

``data_gen``'s teacher ``checkpoint`` is built on this, by name and late: nothing here is imported where no model is.
A model of the training format writes blocks; another one that has a chat template answers as a chat model.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rcjax.blocks import (
    BLOCK_MARKERS,
    END_OF_BLOCK,
    END_OF_MESSAGE,
    SPECIAL_TOKENS,
    Block,
    BlockType,
    Message,
    TextCodec,
    encode_prompt,
)


class ContinuationError(ValueError):
    """A model that can not be a partner; one sentence with the mend."""


@dataclasses.dataclass(frozen=True)
class Partner:
    """A model and its tokenizer.

    Attributes:
      config, params: the model.
      tokenizer: as ``transformers`` has it.
      codec: the tokenizer as plain functions where it has the block tokens; None: the model is a chat model.
      max_new_tokens: most tokens of one turn.
      context: most tokens of prompt and turn together.
    """

    config: Any
    params: Any
    tokenizer: Any
    codec: TextCodec | None
    max_new_tokens: int
    context: int

    def blocks(self, dialogues: Sequence[tuple[Sequence[Message], Sequence[Block]]]) -> list[list[Block] | None]:
        """The next blocks of each assistant turn: up to the place of an execution, or the end of the message.

        Args:
          dialogues: finished turns, and the blocks that the open turn begins with.

        Returns:
          Blocks of text and code; None where the dialogue is too long for the model.
        """
        special = self.codec.special_ids
        prompts = []
        for turns, opened in dialogues:
            ids = encode_prompt(turns, self.codec)
            pieces = self.codec.encode_batch([block.content for block in opened])
            for block, piece in zip(opened, pieces, strict=True):
                ids += [special[BLOCK_MARKERS[block.type]], *piece, special[END_OF_BLOCK]]
            prompts.append(ids)
        stops = (self.codec.eos_id, special[END_OF_MESSAGE], special[BLOCK_MARKERS[BlockType.EXECUTION]])
        return [None if ids is None else self._read(ids) for ids in self._generate(prompts, stops)]

    def chat(self, dialogues: Sequence[Sequence[dict[str, str]]]) -> list[str | None]:
        """The reply to each list of messages; None where it is too long for the model."""
        prompts = [
            list(self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False))
            for messages in dialogues
        ]
        end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        stops = [self.tokenizer.eos_token_id]
        stops += [end] if isinstance(end, int) and end not in (self.tokenizer.unk_token_id, *stops) else []
        replies = self._generate(prompts, stops)
        return [None if ids is None else self.tokenizer.decode(ids, skip_special_tokens=True) for ids in replies]

    def _generate(self, prompts: list[list[int]], stops: Sequence[int]) -> list[list[int] | None]:
        from rcjax.decode import generate

        fits = [place for place, ids in enumerate(prompts) if len(ids) + self.max_new_tokens <= self.context]
        new = generate(
            self.config,
            self.params,
            [prompts[place] for place in fits],
            max_new_tokens=self.max_new_tokens,
            stop_ids=tuple(stops),
        )
        replies: list[list[int] | None] = [None] * len(prompts)
        for place, ids in zip(fits, new, strict=True):
            replies[place] = ids
        return replies

    def _read(self, ids: Sequence[int]) -> list[Block]:
        kinds = {self.codec.special_ids[marker]: kind for kind, marker in BLOCK_MARKERS.items()}
        markers = set(self.codec.special_ids.values())
        found: list[Block] = []
        kind, run = None, []
        for token in (*ids, self.codec.special_ids[END_OF_BLOCK]):
            if token not in markers:
                run.append(token)
                continue
            if kind is not None and run:
                found.append(Block(kind, self.codec.decode(run)))
            kind, run = kinds.get(token), []
        return found


def open_partner(source: str, max_new_tokens: int, context: int) -> Partner:
    """A Hugging Face directory, a hub id, or the workdir of a run: its newest checkpoint.

    Raises:
      ContinuationError: the model can neither write blocks nor chat.
      ValueError, OSError: the model can not be read; each is one sentence.
    """
    from rcjax.hf.hub import model_directory
    from rcjax.hf.load import load_model
    from rcjax.hf.tokenizer import codec, load_tokenizer

    place = Path(source)
    if (place / "checkpoints").is_dir():
        config, params = _of_run(place)
        tokenizer = load_tokenizer(place / "tokenizer")
    else:
        directory = model_directory(source)
        config, params = load_model(directory)
        tokenizer = load_tokenizer(directory)
    has_blocks = set(SPECIAL_TOKENS) <= set(tokenizer.get_vocab())
    if not has_blocks and not tokenizer.chat_template:
        raise ContinuationError(
            f"model {source} has neither the block tokens nor a chat template; train it on traces first, or take an "
            "instruction-tuned one"
        )
    longest = config.max_position_embeddings if hasattr(config, "max_position_embeddings") else context
    return Partner(
        config, params, tokenizer, codec(tokenizer) if has_blocks else None, max_new_tokens, min(context, longest)
    )


@functools.cache
def _of_run(workdir: Path) -> tuple[Any, Any]:
    """Shape and parameters of a run's newest checkpoint."""
    from ml_collections import ConfigDict

    from rcjax.model import LlamaConfig
    from rcjax.train.loop import restore_params

    stored = json.loads((workdir / "model.json").read_text())
    multiple = stored.pop("vocab_multiple")
    model = dataclasses.replace(LlamaConfig.from_hf(stored), vocab_multiple=multiple)
    config = ConfigDict(json.loads((workdir / "config.json").read_text()))
    return model, restore_params(config, workdir, model)[0]
