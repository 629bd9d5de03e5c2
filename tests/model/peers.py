"""Small random models of ours and of transformers with the same weights."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest

from rcjax.hf import convert
from rcjax.model import LlamaConfig, abstract_params

torch = pytest.importorskip("torch", reason="parity is measured against transformers, which needs torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # these products are so small that threads cost more than they give

# Every family and every type of rope scaling, each with what sets it apart. Windows are shorter than the tests'
# sequences. Where only the rotary embedding is special one layer is enough, and quick to compile.
CONFIGS = {
    "llama 2": dict(num_kv_heads=4, rms_norm_eps=1e-5),
    "llama 3.1": dict(
        rope_theta=5e5,
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
    ),
    "codellama": dict(num_layers=1, rope_theta=1e6),
    "deepseek-coder": dict(num_layers=1, rope_theta=1e5, rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "biases, tied, coarse eps": dict(qkv_bias=True, output_bias=True, tie_embeddings=True, rms_norm_eps=1e-3),
    "dynamic": dict(num_layers=1, rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
    "yarn with mscale": dict(
        num_layers=1,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 128,
            "mscale": 1.5,
            "mscale_all_dim": 0.5,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
    ),
    "smollm2": dict(hidden_size=36, num_heads=9, num_kv_heads=3, head_dim=4, rope_theta=1e5, tie_embeddings=True),
    "mistral": dict(family="mistral", sliding_window=20),
    "qwen2, padded table": dict(family="qwen2", qkv_bias=True, rope_theta=1e6, vocab_multiple=8),
    "qwen2, tied, yarn, padded table": dict(
        family="qwen2",
        qkv_bias=True,
        tie_embeddings=True,
        vocab_multiple=8,
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    ),
    "qwen2, windows in some layers": dict(family="qwen2", qkv_bias=True, sliding_window=20, full_attention_layers=1),
    "qwen3": dict(family="qwen3", qk_norm=True, num_kv_heads=1, head_dim=12, rope_theta=1e6),
    "qwen3, biases, windows": dict(
        family="qwen3",
        qk_norm=True,
        qkv_bias=True,
        output_bias=True,
        sliding_window=20,
        tie_embeddings=True,
        num_kv_heads=1,
        head_dim=12,
    ),
}


def make_config(**changes: Any) -> LlamaConfig:
    """A model of about 20k parameters."""
    fields = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2)
    return LlamaConfig(**{**fields, "head_dim": 8, "max_position_embeddings": 1024, **changes})


def random_params(config: LlamaConfig, seed: int, dtype=np.float64) -> dict:
    """Weights large enough that attention is far from uniform and norms are not 1."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path[-1:])
        noise = rng.normal(size=leaf.shape)
        return ((1 + 0.2 * noise) if "scale" in name else 0.3 * noise).astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config))


def transformers_model(config: LlamaConfig, params: dict, dtype) -> Any:
    """The model that transformers makes of our ``config.json``, with these weights.

    In float64 it runs inside ``no_float32``, else nothing could be compared beyond 1e-7.
    """
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "config.json").write_text(json.dumps(config.to_hf()))
        hf_config = transformers.AutoConfig.from_pretrained(directory)
    attention = "sdpa" if dtype == torch.float64 else "eager"
    model = transformers.AutoModelForCausalLM.from_config(hf_config, attn_implementation=attention).to(dtype)
    tensors = {name: torch.tensor(tensor) for name, tensor in convert.to_hf(config, params)}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    if dtype == torch.float64:
        rounded = model.model.rotary_emb
        with no_float32(model):
            exact = model.model.rotary_emb = type(rounded)(hf_config)
        # The very frequencies of transformers, only with more digits.
        assert exact.inv_freq.dtype == torch.float64
        np.testing.assert_allclose(exact.inv_freq, rounded.inv_freq, rtol=1e-6)
        model.forward = _without_float32(model, model.forward)
    return model.eval()


@contextlib.contextmanager
def no_float32(model: Any):
    """Inside, transformers' own code computes in float64 what it rounds to float32 in a float64 model.

    That is the norms, the rotary frequencies and tables, and the softmax of eager attention: there the code names
    ``torch.float`` or ``torch.float32``, and these names mean float64 here.
    """
    modules = (sys.modules[type(model).__module__], transformers.modeling_rope_utils)
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch.object(module, "torch", _Torch64()))
        yield


class _Torch64:
    def __getattr__(self, name: str) -> Any:
        return torch.float64 if name in ("float", "float32") else getattr(torch, name)


def _without_float32(model, function):
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with no_float32(model):
            return function(*args, **kwargs)

    return wrapped


def visible(positions: np.ndarray, window: int | None) -> Any:
    """The mask of a sequence by its definition: bool [1, 1, n, n] from positions [n]."""
    seen = np.tri(len(positions), dtype=bool)
    if window is not None:
        seen &= positions[:, None] - positions < window
    return torch.tensor(seen[None, None])


def masks(config: LlamaConfig, positions: np.ndarray) -> Any:
    """``visible`` in the form that the family's model takes: one mask, or one for each kind of layer."""
    if config.family in ("llama", "mistral"):
        return visible(positions, config.windows[0])
    return {
        "full_attention": visible(positions, None),
        "sliding_attention": visible(positions, config.sliding_window),
    }
