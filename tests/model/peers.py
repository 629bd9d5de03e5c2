"""Small random models of ours and of transformers with the same weights."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest

from rcjax.hf import convert
from rcjax.model import LlamaConfig, abstract_params

torch = pytest.importorskip("torch", reason="parity is measured against transformers, which needs torch")
transformers = pytest.importorskip("transformers")
LlamaRMSNorm = transformers.models.llama.modeling_llama.LlamaRMSNorm
LlamaRotaryEmbedding = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding

CONFIGS = {
    "plain": dict(num_kv_heads=4, head_dim=8),
    "grouped": dict(num_kv_heads=2, head_dim=8),
    "one kv head, wide heads, tied": dict(num_kv_heads=1, head_dim=12, tie_embeddings=True),
    "linear rope, large theta": dict(
        num_kv_heads=2, head_dim=8, rope_theta=1e5, rope_scaling={"rope_type": "linear", "factor": 4.0}
    ),
    "bias, tied, coarse eps": dict(
        num_kv_heads=2, head_dim=8, attention_bias=True, tie_embeddings=True, rms_norm_eps=1e-3
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
    """LlamaForCausalLM with these weights.

    transformers rounds norms, rotary tables and the softmax to float32 even in a float64 model; for float64 they are
    put right here (sdpa attention has no such rounding), else nothing could be compared beyond 1e-7.
    """
    attention = "sdpa" if dtype == torch.float64 else "eager"
    hf_config = transformers.LlamaConfig(**config.to_hf(), attn_implementation=attention)
    model = transformers.LlamaForCausalLM(hf_config).to(dtype)
    tensors = {name: torch.tensor(tensor) for name, tensor in convert.to_hf(config, params)}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    if dtype == torch.float64:
        for module in model.modules():
            if isinstance(module, LlamaRMSNorm):
                module.forward = functools.partial(_norm64, module)
            elif isinstance(module, LlamaRotaryEmbedding):
                module.forward = functools.partial(_rotary64, hf_config)
    return model.eval()


def _norm64(module, x):
    return module.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon))


def _rotary64(hf_config, x, position_ids):
    rope = hf_config.rope_parameters
    exponents = torch.arange(0, hf_config.head_dim, 2, dtype=torch.float64) / hf_config.head_dim
    angles = position_ids[..., None].double() / (rope["rope_theta"] ** exponents) / rope.get("factor", 1.0)
    both = torch.cat((angles, angles), dim=-1)
    return both.cos(), both.sin()
