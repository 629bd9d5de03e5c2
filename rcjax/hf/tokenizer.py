"""Tokenizers: trained from scratch, saved, loaded, and as the plain functions that ``rcjax.blocks`` wants."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rcjax.blocks import ASSISTANT, BLOCK_MARKERS, END_OF_BLOCK, END_OF_MESSAGE, SPECIAL_TOKENS, USER, TextCodec
from rcjax.hf.directory import whole_directory

if TYPE_CHECKING:  # transformers takes two seconds to import
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"

_TEXT, _CODE, _EXECUTION = BLOCK_MARKERS.values()

# Jinja. Renders what `rcjax.blocks.encode` (or, with a generation prompt, `encode_prompt`) makes of the same turns.
# A string is one TEXT block; a list holds {"type": "text" | "code" | "execution", "content" or "text": ...}.
# A template makes one string, so a marker spelled out inside a content becomes a marker; `encode` has no such gap.
CHAT_TEMPLATE = (
    "{%- set block_markers = {'text': '" + _TEXT + "', 'code': '" + _CODE + "', 'execution': '" + _EXECUTION + "'} -%}"
    "{%- set role_markers = {'user': '" + USER + "', 'assistant': '" + ASSISTANT + "'} -%}"
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in role_markers -%}"
    "{{- raise_exception('role must be user or assistant, not ' ~ message['role']) -}}"
    "{%- endif -%}"
    "{{- role_markers[message['role']] -}}"
    "{%- if message['content'] is string -%}"
    "{{- block_markers['text'] ~ message['content'] ~ '" + END_OF_BLOCK + "' -}}"
    "{%- else -%}"
    "{%- for block in message['content'] -%}"
    "{%- if block['type'] not in block_markers -%}"
    "{{- raise_exception('block type must be text, code or execution, not ' ~ block['type']) -}}"
    "{%- endif -%}"
    "{{- block_markers[block['type']] -}}"
    "{{- block['content'] if 'content' in block else block['text'] -}}"
    "{{- '" + END_OF_BLOCK + "' -}}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- '" + END_OF_MESSAGE + "' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- role_markers['assistant'] -}}"
    "{%- elif messages and messages[-1]['role'] == 'assistant' -%}"
    "{{- eos_token -}}"
    "{%- endif -%}"
)


class TokenizerError(ValueError):
    """A tokenizer that can not serve; the message names directory and what is missing."""


# What a merge may not cross. `words` is GPT-2's rule: letters, punctuation and white space stay apart. `lines` lets
# merges cross words inside a line, so that fragments such as "for x in xs" become one token (as in SuperBPE,
# arXiv 2503.13423): half the tokens on code and text that are made of recurring fragments.
_LINE = r"\n *|[^\n]+"
PRETOKENIZERS = ("words", "lines")


def train_tokenizer(texts: Iterable[str], vocab_size: int, pretokenizer: str = "words") -> PreTrainedTokenizerFast:
    """Byte-level BPE with the block tokens: any text is encoded without loss, the same input gives the same ids.

    No space is put in front, and each digit is a token of its own (so numbers are spelled alike wherever they
    stand). Ids: 0 ``<s>``, 1 ``</s>``, 2 ``<pad>``, 3-9 the block tokens, then 256 bytes, then merges.

    Args:
      texts: block contents.
      vocab_size: at least 266; less comes out when the texts hold too few distinct pairs.
      pretokenizer: ``words`` or ``lines``, see ``PRETOKENIZERS``.

    Raises:
      TokenizerError: ``vocab_size`` has no room for special tokens and bytes, or unknown ``pretokenizer``.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if pretokenizer not in PRETOKENIZERS:
        raise TokenizerError(
            f"config.tokenizer.pretokenizer is {pretokenizer!r}; expected one of {', '.join(PRETOKENIZERS)}"
        )

    special = [BOS, EOS, PAD, *SPECIAL_TOKENS]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(special) + len(alphabet):
        raise TokenizerError(
            f"config.tokenizer.vocab_size is {vocab_size}; special tokens and bytes alone take "
            f"{len(special) + len(alphabet)}"
        )
    backend = Tokenizer(models.BPE())
    pieces = [pre_tokenizers.Digits(individual_digits=True)]
    if pretokenizer == "lines":
        pieces.append(pre_tokenizers.Split(Regex(_LINE), "isolated"))
    pieces.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pretokenizer == "words"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: str | Path) -> None:
    """Writes a Hugging Face tokenizer directory, whole or not at all."""
    with whole_directory(directory) as partial:
        write_tokenizer(tokenizer, partial)


def write_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Writes the tokenizer's files into an existing directory, in a form that older transformers read as well.

    Version 5 writes a class name that version 4 does not know, and a list where version 4 expects a dict.
    """
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    for key in ("auto_map", "is_local", "local_files_only"):  # of the place that it was loaded from
        settings.pop(key, None)
    extra = settings.pop("extra_special_tokens", None)
    if isinstance(extra, list):
        settings["additional_special_tokens"] = extra
    elif extra is not None:
        settings["extra_special_tokens"] = extra
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_tokenizer(directory: str | Path, rows: int | None = None) -> PreTrainedTokenizerFast:
    """Reads a tokenizer directory, of ours or of any fast tokenizer.

    Args:
      rows: of the table of the model that it belongs to. Tokens beyond it that settings name but ``tokenizer.json``
        does not hold are left out: CodeLlama-Python has such, for infilling, which it can not do.

    Raises:
      TokenizerError: no ``tokenizer.json`` there, or it can not be read.
    """
    directory = Path(directory)
    if not (directory / "tokenizer.json").is_file():
        slow = next((name for name in ("tokenizer.model", "vocab.json") if (directory / name).is_file()), None)
        if slow:
            raise TokenizerError(
                f"{directory} holds {slow} but no tokenizer.json, the one form that is read; write it with "
                f"transformers.AutoTokenizer.from_pretrained({str(directory)!r}).save_pretrained({str(directory)!r})"
            )
        raise TokenizerError(
            f"{directory} holds no tokenizer.json; give the directory of a Hugging Face fast tokenizer"
        )
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
        held = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # the tokenizers library raises bare Exception for a file that it can not parse
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TokenizerError(f"{directory}/tokenizer.json can not be read ({reason}); copy it again") from None
    vocabulary = held.get_vocab()
    if rows is None or len(tokenizer) <= rows or max(vocabulary.values()) >= rows:
        return tokenizer
    roles = {role: getattr(tokenizer, role) for role in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=held,
        chat_template=tokenizer.chat_template,
        clean_up_tokenization_spaces=False,
        **{role: token for role, token in roles.items() if token in vocabulary},
    )


def codec(tokenizer: PreTrainedTokenizerFast) -> TextCodec:
    """The tokenizer as ``rcjax.blocks`` wants it; the tokenizer itself is left as it was.

    Content is always encoded as plain text: a marker's spelling in it gives ordinary tokens. It gets the tokens that
    the tokenizer gives it behind a marker, as in a rendered chat. What a tokenizer changes itself it changes here
    too: Qwen's brings text into Unicode's NFC form, a sentencepiece one takes U+2581 for a space.

    Raises:
      TokenizerError: a block token, BOS or EOS is missing, or spelled markers can not be kept apart.
    """
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    if missing:
        raise TokenizerError(f"the tokenizer has no token {missing[0]}; use one that was trained with the block tokens")
    for name in ("bos_token", "eos_token"):
        if getattr(tokenizer, name) is None:
            raise TokenizerError(f"the tokenizer has no {name}; set it in its tokenizer_config.json")
    backend = _content_backend(tokenizer)
    special_ids = {token: vocabulary[token] for token in SPECIAL_TOKENS}
    spelled = backend.encode("".join(SPECIAL_TOKENS), add_special_tokens=False).ids
    if set(spelled) & set(special_ids.values()):
        raise TokenizerError("the tokenizer turns spelled-out block tokens into block tokens; add them as special ones")

    def encode_batch(texts: Iterable[str]) -> list[list[int]]:
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode_first(ids: Iterable[int]) -> str:
        return backend.decode(list(ids), skip_special_tokens=False)

    def decode_behind(ids: Iterable[int]) -> str:
        # Behind a marker, since a sentencepiece decoder takes away the space that a text begins with.
        return decode_first([special_ids[END_OF_BLOCK], *ids]).removeprefix(END_OF_BLOCK)

    # Which of the two is the inverse depends on whether the tokenizer puts a space in front of what follows a marker.
    # Where it does so only if none is there, neither is; then a text without one matters most.
    probes = ("x", " x", "  x")
    encoded = encode_batch(probes)

    def restored(decode: Callable[[Iterable[int]], str]) -> list[bool]:
        return [decode(ids) == probe for probe, ids in zip(probes, encoded, strict=True)]

    pad = tokenizer.pad_token_id
    return TextCodec(
        encode_batch=encode_batch,
        decode=max(decode_first, decode_behind, key=restored),
        special_ids=special_ids,
        bos_id=tokenizer.bos_token_id,
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.eos_token_id if pad is None else pad,
        vocab_size=max(vocabulary.values()) + 1,
    )


def _content_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A tokenizer for the content of blocks: knows no special tokens, and takes no content for a text's beginning."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = state["pre_tokenizer"] or {}
    for part in (pre, *pre.get("pretokenizers", ())):
        # A space goes in front of a text's beginning alone; content stands behind a marker.
        if part.get("type") == "Metaspace" and part.get("prepend_scheme") == "first":
            part["prepend_scheme"] = "never"
    backend = Tokenizer.from_str(json.dumps(state))
    backend.add_special_tokens(list(SPECIAL_TOKENS))  # where they were added as ordinary tokens
    backend.encode_special_tokens = True
    backend.no_padding()
    backend.no_truncation()
    return backend
