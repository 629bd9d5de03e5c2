"""Shape and hyperparameters of a Llama model, and their Hugging Face form."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


class ModelConfigError(ValueError):
    """A model configuration that can not be run as it stands; the message names field and value."""


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the length a model was first trained on.

    Attributes:
      rope_type: ``linear`` (positions divided by ``factor``; Chen et al. 2023, arXiv 2306.15595).
      factor: at least 1.
    """

    rope_type: str
    factor: float

    @classmethod
    def from_mapping(cls, raw: Mapping[str, Any], field: str = "rope_scaling") -> RopeScaling | None:
        """Reads ``{"rope_type" or "type": ..., "factor": ...}``; None for type ``default``."""
        kind = raw.get("rope_type", raw.get("type", "default"))
        if kind == "default":
            return None
        if kind != "linear":
            raise ModelConfigError(f"{field}.rope_type is {kind!r}; supported are 'default' and 'linear'")
        factor = raw.get("factor")
        if isinstance(factor, bool) or not isinstance(factor, int | float) or factor < 1:
            raise ModelConfigError(f"{field}.factor is {factor!r}; expected a number of at least 1")
        return cls("linear", float(factor))

    def to_mapping(self) -> dict[str, Any]:
        """The Hugging Face form."""
        return {"rope_type": self.rope_type, "factor": self.factor}


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Everything that decides a model's function besides its parameters. Hashable: static under ``jax.jit``.

    Attributes:
      num_kv_heads: divides ``num_heads`` (grouped-query attention).
      head_dim: even; need not be hidden_size / num_heads.
      rope_scaling: a ``RopeScaling``, None, or a mapping that ``RopeScaling.from_mapping`` reads.
      attention_bias: biases on the query, key, value and output projections.
      max_position_embeddings: the longest sequence the model is meant for; not enforced here.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-6
    tie_embeddings: bool = False
    attention_bias: bool = False
    max_position_embeddings: int = 4096
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self):
        if isinstance(self.rope_scaling, Mapping):
            object.__setattr__(self, "rope_scaling", RopeScaling.from_mapping(self.rope_scaling))
        if isinstance(self.eos_token_id, list):
            object.__setattr__(self, "eos_token_id", tuple(self.eos_token_id))
        for field in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
        ):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ModelConfigError(f"model field {field} is {value!r}; expected a positive integer")
        if self.num_heads % self.num_kv_heads:
            raise ModelConfigError(
                f"model field num_kv_heads is {self.num_kv_heads}, which does not divide num_heads={self.num_heads}"
            )
        if self.head_dim % 2:
            raise ModelConfigError(f"model field head_dim is {self.head_dim}; rotary embedding needs an even number")

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> LlamaConfig:
        """Reads a Hugging Face ``config.json``, of transformers 5 or of the older form.

        Raises:
          ModelConfigError: a field is missing, or its value is not supported; both are named.
        """
        kind = raw.get("model_type")
        if kind != "llama":
            raise ModelConfigError(f"config.json: model_type is {kind!r}; supported is 'llama'")
        for field, wanted in (("hidden_act", "silu"), ("mlp_bias", False), ("quantization_config", None)):
            value = raw.get(field, wanted)
            if value != wanted:
                raise ModelConfigError(f"config.json: {field} is {value!r}; supported is {wanted!r}")
        missing = [
            field
            for field in (
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
            )
            if raw.get(field) is None
        ]
        if missing:
            raise ModelConfigError(f"config.json: field {missing[0]} is missing")
        heads = raw["num_attention_heads"]
        # transformers 5 keeps theta and scaling in one dict; files written before have two top-level fields.
        old, new = raw.get("rope_scaling") or {}, raw.get("rope_parameters") or {}
        if new.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) not in (1, None):
            raise ModelConfigError("config.json: partial_rotary_factor is not 1; only whole heads are rotated here")
        theta = new.get("rope_theta", old.get("rope_theta", raw.get("rope_theta")))
        scaling = RopeScaling.from_mapping(new or old, "config.json: " + ("rope_parameters" if new else "rope_scaling"))
        try:
            return cls(
                vocab_size=raw["vocab_size"],
                hidden_size=raw["hidden_size"],
                intermediate_size=raw["intermediate_size"],
                num_layers=raw["num_hidden_layers"],
                num_heads=heads,
                num_kv_heads=raw.get("num_key_value_heads") or heads,
                head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
                rope_theta=float(theta) if theta is not None else 10000.0,
                rope_scaling=scaling,
                rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
                tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
                attention_bias=bool(raw.get("attention_bias", False)),
                max_position_embeddings=raw.get("max_position_embeddings", 2048),
                bos_token_id=raw.get("bos_token_id"),
                eos_token_id=raw.get("eos_token_id"),
                pad_token_id=raw.get("pad_token_id"),
            )
        except ModelConfigError as error:
            raise ModelConfigError(f"config.json: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """The ``config.json`` that transformers (4 and 5) and vllm read; ``from_hf(c.to_hf()) == c``."""
        scaling = self.rope_scaling.to_mapping() if self.rope_scaling else None
        eos = self.eos_token_id
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            # Both forms: transformers 5 reads the dict, everything older the two fields beside it.
            "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": self.rope_theta},
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "attention_bias": self.attention_bias,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "tie_word_embeddings": self.tie_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
            "pad_token_id": self.pad_token_id,
            "initializer_range": 0.02,
            "use_cache": True,
        }

    @property
    def num_params(self) -> int:
        """Exact number of parameters; a tied table counts once."""
        embed, inner = self.hidden_size, self.num_heads * self.head_dim
        kv = self.num_kv_heads * self.head_dim
        layer = embed * (inner + 2 * kv) + inner * embed + 3 * embed * self.intermediate_size + 2 * embed
        if self.attention_bias:
            layer += inner + 2 * kv + embed
        tables = self.vocab_size * embed * (1 if self.tie_embeddings else 2)
        return tables + self.num_layers * layer + embed

    def flops_per_token(self, context: float, *, head: bool = True) -> float:
        """FLOPs of the forward pass for one token; a training step takes three times as many.

        A multiply-add counts as two; norms, softmax and rotary embedding are left out, as is customary.

        Args:
          context: keys that the token attends to, itself included (a mean may be given).
          head: with the output projection, which training computes at labelled positions alone.
        """
        embed, inner = self.hidden_size, self.num_heads * self.head_dim
        kv = self.num_kv_heads * self.head_dim
        matrices = embed * (inner + 2 * kv) + inner * embed + 3 * embed * self.intermediate_size
        attention = 2 * inner * context  # scores and weighted values
        return 2.0 * (self.num_layers * (matrices + attention) + (embed * self.vocab_size if head else 0))
