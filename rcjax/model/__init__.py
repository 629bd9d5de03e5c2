"""Llama-family model in Flax (nnx). Outside of this package parameters are a plain nested dict."""

from rcjax.model.config import LlamaConfig, ModelConfigError, RopeScaling
from rcjax.model.llama import (
    REMAT_POLICIES,
    Llama,
    abstract_params,
    apply,
    apply_layer,
    embed_tokens,
    final_logits,
    head_kernel,
    init_params,
    logical_axes,
)

__all__ = [
    "REMAT_POLICIES",
    "Llama",
    "LlamaConfig",
    "ModelConfigError",
    "RopeScaling",
    "abstract_params",
    "apply",
    "apply_layer",
    "embed_tokens",
    "final_logits",
    "head_kernel",
    "init_params",
    "logical_axes",
]
