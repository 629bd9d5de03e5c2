"""Small fast tokenizers built as those of the model families are, by the library that reads them all."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _special(*tokens: str) -> list[AddedToken]:
    return [AddedToken(token, normalized=False, special=True) for token in tokens]


def sentencepiece(prepend: str | None = None, strip: bool = True) -> PreTrainedTokenizerFast:
    """Llama 2, CodeLlama, Mistral: BPE over characters with bytes to fall back on, a space written as U+2581.

    Args:
      prepend: None puts it in front by a normalizer, as CodeLlama's file does; else a Metaspace pre-tokenizer with
        this scheme, as newer files have it: ``first``, ``always`` or ``never``.
      strip: the decoder takes one space from the front.
    """
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for character in "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ<|>()=:'.,é":
        vocab[character] = len(vocab)
    merges = [("▁", "▁"), ("▁▁", "▁▁"), ("u", "s"), ("us", "e"), ("use", "r"), ("▁", "d"), ("e", "n"), ("en", "d")]
    merges += [("|", ">"), ("<", "|"), ("▁", "<"), ("c", "o"), ("co", "d"), ("cod", "e")]
    for pair in merges:
        vocab.setdefault("".join(pair), len(vocab))
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if prepend is None:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=prepend, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if strip else [])])
    backend.add_special_tokens(_special("<unk>", "<s>", "</s>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template="{{ messages }}"
    )


def byte_level(gaps: bool = False, bos: bool = False) -> PreTrainedTokenizerFast:
    """Qwen2.5-Coder, DeepSeek-Coder: bytes, text in NFC, special and other tokens added behind the base vocabulary.

    Args:
      gaps: one token of the base vocabulary has an id far behind the others.
      bos: there is a BOS token; Qwen has none.
    """
    vocab = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("u", "s"), ("us", "e"), ("<", "|"), ("|", ">"), ("Ġ", "Ġ"), ("c", "o"), ("d", "e"), ("co", "de")]
    for pair in merges:
        vocab.setdefault("".join(pair), len(vocab))
    if gaps:
        vocab["far"] = 500
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(_special("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(["<|begin|>"] if bos else [])))
    backend.add_tokens([AddedToken("<tool_call>", normalized=False, special=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **({"bos_token": "<|begin|>"} if bos else {}),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        chat_template="{{ messages }}",
    )


def ours() -> PreTrainedTokenizerFast:
    """As ``train_tokenizer`` makes it, but without the block tokens."""
    from tokenizers import trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(["def add(a, b):\n    return a + b", "<|user|> code"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "ours": ours,
    "codellama": sentencepiece,
    "metaspace, first": lambda: sentencepiece("first"),
    "metaspace, never, no strip": lambda: sentencepiece("never", strip=False),
    "qwen": byte_level,
    "deepseek": lambda: byte_level(bos=True),
    "gaps": lambda: byte_level(gaps=True),
}
