"""The seven block tokens, added to a tokenizer that lacks them, and how the tables follow."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rcjax.blocks import SPECIAL_TOKENS
from rcjax.hf.tokenizer import CHAT_TEMPLATE, TokenizerError

if TYPE_CHECKING:  # transformers takes two seconds to import
    from transformers import PreTrainedTokenizerFast


@dataclasses.dataclass(frozen=True)
class VocabularyPlan:
    """How the rows of embedding and output projection follow from a checkpoint's.

    Attributes:
      old_size: tokens of the checkpoint's tokenizer, that is the highest id and one.
      new_size: the same with the block tokens: rows that the tables get. Padded ones shrink.
      means: id of a new token -> ids of the pieces into which the old tokenizer splits its spelling. Its row is the
        mean of theirs, in each table for itself. All other rows stay.
    """

    old_size: int
    new_size: int
    means: Mapping[int, tuple[int, ...]]


def add_block_tokens(
    tokenizer: PreTrainedTokenizerFast, *, bos_token_id: int | None = None
) -> tuple[PreTrainedTokenizerFast, VocabularyPlan]:
    """A copy of the tokenizer that renders and encodes the training format, and how the tables follow.

    Block tokens that lack are added as special tokens; the chat template becomes ours. Without a BOS token the
    copy takes ``bos_token_id`` where that is a special token, else EOS; without a PAD token it takes EOS.

    Args:
      bos_token_id: of the checkpoint's ``config.json``.

    Raises:
      TokenizerError: no EOS token, or ids that are numbered so that there is no room for new ones.
    """
    from tokenizers import AddedToken

    if tokenizer.eos_token is None:
        raise TokenizerError("the tokenizer has no eos_token; set it in its tokenizer_config.json")
    old = tokenizer.get_vocab()
    missing = [token for token in SPECIAL_TOKENS if token not in old]
    result = copy.deepcopy(tokenizer)
    backend = result.backend_tokenizer
    # Those that are there too: markers must neither pass for text nor eat the space beside them.
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    new = {token: backend.token_to_id(token) for token in missing}
    taken = set(old.values())
    clash = [token for token in missing if new[token] in taken]
    if clash:
        raise TokenizerError(
            f"the tokenizer's ids have gaps, so that {clash[0]} would get the id {new[clash[0]]} of another token; "
            "renumber its tokens without gaps"
        )
    means = {new[token]: _pieces(tokenizer, token) for token in missing}
    extra = [token for token in result.extra_special_tokens if token not in SPECIAL_TOKENS]
    result.extra_special_tokens = [*extra, *SPECIAL_TOKENS]
    if result.bos_token is None:
        added = backend.get_added_tokens_decoder().get(bos_token_id)
        result.bos_token = added.content if added is not None and added.special else result.eos_token
    if result.pad_token is None:
        result.pad_token = result.eos_token
    result.chat_template = CHAT_TEMPLATE
    sizes = [max(vocabulary.values()) + 1 for vocabulary in (old, result.get_vocab())]
    return result, VocabularyPlan(*sizes, means)


def _pieces(tokenizer: PreTrainedTokenizerFast, token: str) -> tuple[int, ...]:
    pieces = tokenizer(token, add_special_tokens=False)["input_ids"]
    if not pieces:
        raise TokenizerError(f"the tokenizer splits {token} into no tokens at all; its tokenizer.json is damaged")
    return tuple(pieces)
