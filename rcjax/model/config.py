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
      rope_type: one of ``ROPE_TYPES``: ``linear`` (positions divided by ``factor``; Chen et al. 2023, arXiv
        2306.15595), ``dynamic`` (the base grows with the length; up to ``max_position_embeddings``, beyond which it is
        refused here, that is no scaling at all), ``llama3`` (low frequencies divided, high ones kept; Llama 3.1),
        ``yarn`` (Peng et al. 2023, arXiv 2309.00071).
      factor: at least 1.
      original_max_position_embeddings: length before the stretch (llama3, yarn).
      low_freq_factor, high_freq_factor: of llama3.
      beta_fast, beta_slow, attention_factor, mscale, mscale_all_dim, truncate: of yarn; None takes the default.
    """

    rope_type: str
    factor: float
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None

    @classmethod
    def from_mapping(
        cls, raw: Mapping[str, Any], max_position_embeddings: int, field: str = "rope_scaling"
    ) -> RopeScaling | None:
        """Reads ``{"rope_type" or "type": ..., "factor": ..., ...}``; None for type ``default``.

        Args:
          max_position_embeddings: the model's; stands in where the original length is not given, as in transformers.

        Raises:
          ModelConfigError: an unknown type or key, or a value that makes no sense.
        """
        kind = raw.get("rope_type", raw.get("type", "default"))
        if kind == "default":
            return None
        if kind not in ROPE_TYPES:
            raise ModelConfigError(
                f"{field}.rope_type is {kind!r}; supported are 'default', " + ", ".join(map(repr, ROPE_TYPES))
            )
        given = {key: value for key, value in raw.items() if value is not None and key not in _ROPE_IGNORED}
        values: dict[str, Any] = {}
        for key, value in given.items():
            if key not in ROPE_TYPES[kind]:
                if key == "original_max_position_embeddings":  # plays no part in the other types
                    continue
                raise ModelConfigError(f"{field}.{key} is {value!r}, which rope type {kind!r} does not have")
            wanted = bool if key == "truncate" else int if key == "original_max_position_embeddings" else int | float
            if not isinstance(value, wanted) or (wanted is not bool and (isinstance(value, bool) or value <= 0)):
                expected = "true or false" if wanted is bool else "a positive number"
                raise ModelConfigError(f"{field}.{key} is {value!r}; expected {expected}")
            values[key] = value if wanted in (bool, int) else float(value)
        if kind in ("llama3", "yarn"):
            values.setdefault("original_max_position_embeddings", max_position_embeddings)
        if kind == "yarn" and "factor" not in values:
            values["factor"] = max(1.0, max_position_embeddings / values["original_max_position_embeddings"])
        for key in ("factor", *(("low_freq_factor", "high_freq_factor") if kind == "llama3" else ())):
            if key not in values:
                raise ModelConfigError(f"{field}.{key} is missing; rope type {kind!r} needs it")
        if values["factor"] < 1:
            raise ModelConfigError(f"{field}.factor is {values['factor']!r}; expected a number of at least 1")
        if kind == "llama3" and values["high_freq_factor"] <= values["low_freq_factor"]:
            raise ModelConfigError(
                f"{field}.high_freq_factor is {values['high_freq_factor']}; it must exceed low_freq_factor="
                f"{values['low_freq_factor']}"
            )
        return cls(kind, **values)

    def to_mapping(self) -> dict[str, Any]:
        """The Hugging Face form."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


# Keys that each type has.
ROPE_TYPES = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
}
# Read elsewhere, or without meaning (`finetuned` says how a yarn model came to be).
_ROPE_IGNORED = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned")


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Everything that decides a model's function besides its parameters. Hashable: static under ``jax.jit``.

    One module serves every family; what sets them apart are the fields below ``rms_norm_eps``.

    Attributes:
      vocab_size: tokens that exist. The tables have ``table_size`` rows.
      num_kv_heads: divides ``num_heads`` (grouped-query attention).
      head_dim: even; need not be hidden_size / num_heads.
      rope_scaling: a ``RopeScaling``, None, or a mapping that ``RopeScaling.from_mapping`` reads.
      family: one of ``FAMILIES``; decides the form of ``config.json`` alone.
      qkv_bias, output_bias: biases on the query, key and value projections, and on the output projection.
      qk_norm: RMS norm over each head of query and key, before the rotary embedding (Qwen3).
      sliding_window: a token sees the last so many positions, itself included; None: all.
      full_attention_layers: so many layers from the first one see everything whatever ``sliding_window`` is.
      vocab_multiple: the tables are padded to a multiple of it, so that any mesh divides them. The rows behind
        ``vocab_size`` stand for no token: no loss counts them, nothing samples them, no export holds them.
      max_position_embeddings: the longest sequence the model is meant for; see ``check_length``.
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
    family: str = "llama"
    tie_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    full_attention_layers: int = 0
    vocab_multiple: int = 1
    max_position_embeddings: int = 4096
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self):
        if isinstance(self.rope_scaling, Mapping):
            scaling = RopeScaling.from_mapping(self.rope_scaling, self.max_position_embeddings)
            object.__setattr__(self, "rope_scaling", scaling)
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
            "vocab_multiple",
        ):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ModelConfigError(f"model field {field} is {value!r}; expected a positive integer")
        if self.family not in FAMILIES:
            raise ModelConfigError(f"model field family is {self.family!r}; choices are {', '.join(FAMILIES)}")
        if self.num_heads % self.num_kv_heads:
            raise ModelConfigError(
                f"model field num_kv_heads is {self.num_kv_heads}, which does not divide num_heads={self.num_heads}"
            )
        if self.head_dim % 2:
            raise ModelConfigError(f"model field head_dim is {self.head_dim}; rotary embedding needs an even number")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ModelConfigError(f"model field sliding_window is {self.sliding_window}; expected at least 1, or None")
        # One way to write each model, so that equal models compare equal.
        if self.sliding_window is None or self.full_attention_layers >= self.num_layers:
            object.__setattr__(self, "sliding_window", None)
            object.__setattr__(self, "full_attention_layers", 0)

    @property
    def table_size(self) -> int:
        """Rows of the embedding table and columns of the output projection: ``vocab_size`` and the padding."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Of each layer, how many positions a token sees; None: all."""
        full = self.full_attention_layers if self.sliding_window is not None else self.num_layers
        return tuple(None if layer < full else self.sliding_window for layer in range(self.num_layers))

    def check_length(self, length: int, what: str) -> None:
        """Refuses sequences for which the model's function is not fixed.

        Only ``dynamic`` rope scaling has such: beyond ``max_position_embeddings`` its frequencies depend on the
        longest sequence of a batch.

        Raises:
          ModelConfigError: ``length`` is too much; ``what`` names where it comes from.
        """
        if self.rope_scaling and self.rope_scaling.rope_type == "dynamic" and length > self.max_position_embeddings:
            raise ModelConfigError(
                f"{what} is {length}, but rope type 'dynamic' is fixed only up to max_position_embeddings="
                f"{self.max_position_embeddings}; lower it"
            )

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> LlamaConfig:
        """Reads a Hugging Face ``config.json``, of transformers 5 or of the older form.

        Fields that are left out take the value that transformers gives them in that family.

        Raises:
          ModelConfigError: a field is missing, or its value is not supported; both are named.
        """
        problems = cls.refusals(raw)
        if problems:
            raise ModelConfigError(f"config.json: {problems[0]}")
        return cls(**_fields(raw))

    @classmethod
    def refusals(cls, raw: Mapping[str, Any]) -> list[str]:
        """Everything in a ``config.json`` that is not supported, a sentence each; empty where the model can be run."""
        kind = raw.get("model_type")
        if kind not in FAMILIES:
            return [f"model_type is {kind!r}; supported are {', '.join(map(repr, FAMILIES))}"]
        problems = []
        for field, wanted in _SUPPORTED.items():
            value = raw.get(field, wanted)
            if value != wanted and not (value is None and not wanted):
                problems.append(f"{field} is {value!r}; supported is {wanted!r}")
        raw = {**FAMILIES[kind].defaults, **raw}
        for field, (wanted, words) in _KINDS.items():
            value = raw.get(field)
            if value is None and field in ("max_position_embeddings", "rms_norm_eps") and field in raw:
                problems.append(f"{field} is None; expected {words}")
            elif value is not None and (not isinstance(value, wanted) or isinstance(value, bool) > (wanted is bool)):
                problems.append(f"{field} is {_shortened(value)}; expected {words}")
        if problems and any("; expected " in problem for problem in problems):
            return problems  # the rest could not be read
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        missing = [field for field in sizes if raw.get(field) is None]
        problems += [f"field {field} is missing" for field in missing]
        if (raw.get("rope_parameters") or {}).get("partial_rotary_factor", raw.get("partial_rotary_factor")) not in (
            1,
            None,
        ):
            problems.append("partial_rotary_factor is not 1; only whole heads are rotated here")
        types = raw.get("layer_types")
        if types is not None and "use_sliding_window" in raw and not missing:
            switch = types.index("sliding_attention") if "sliding_attention" in types else len(types)
            expected = ["full_attention"] * switch + ["sliding_attention"] * (len(types) - switch)
            if types != expected or len(types) != raw["num_hidden_layers"]:
                problems.append(
                    f"layer_types is {_shortened(types)}; supported is 'full_attention' for the first layers and "
                    f"'sliding_attention' for all behind them, one entry for each of {raw['num_hidden_layers']} layers"
                )
        if not missing:
            try:
                cls(**_fields(raw))
            except ModelConfigError as error:
                problems.append(str(error))
        return problems

    def to_hf(self) -> dict[str, Any]:
        """The ``config.json`` that transformers (4 and 5) and vllm read; ``from_hf(c.to_hf()) == c``.

        The padding of the tables is not in it: ``vocab_multiple`` comes back as 1.

        Raises:
          ModelConfigError: the family has no field for a property of this model.
        """
        scaling = self.rope_scaling.to_mapping() if self.rope_scaling else None
        eos = self.eos_token_id
        family = {
            "llama": lambda: {"attention_bias": self.qkv_bias, "mlp_bias": False},
            "mistral": lambda: {"sliding_window": self.sliding_window},
            "qwen2": self._qwen_windows,
            "qwen3": lambda: {"attention_bias": self.qkv_bias, **self._qwen_windows()},
        }[self.family]()
        raw = {
            "architectures": [FAMILIES[self.family].architecture],
            "model_type": self.family,
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
            "attention_dropout": 0.0,
            "tie_word_embeddings": self.tie_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
            "pad_token_id": self.pad_token_id,
            "initializer_range": 0.02,
            "use_cache": True,
            **family,
        }
        again = _fields(raw)
        for field in dataclasses.fields(self):
            if field.name != "vocab_multiple" and again.get(field.name, field.default) != getattr(self, field.name):
                raise ModelConfigError(
                    f"model field {field.name} is {getattr(self, field.name)!r}, which a {self.family} model can not "
                    "have; name another family"
                )
        return raw

    def _qwen_windows(self) -> dict[str, Any]:
        sliding, full = self.sliding_window, self.full_attention_layers
        kinds = ["full_attention" if window is None else "sliding_attention" for window in self.windows]
        return {
            "use_sliding_window": sliding is not None,
            "sliding_window": sliding,
            "max_window_layers": full if sliding is not None else self.num_layers,
            "layer_types": kinds,
        }

    @property
    def num_params(self) -> int:
        """Exact number of parameters; a tied table counts once, the padding of the tables not at all."""
        embed, inner = self.hidden_size, self.num_heads * self.head_dim
        kv = self.num_kv_heads * self.head_dim
        layer = embed * (inner + 2 * kv) + inner * embed + 3 * embed * self.intermediate_size + 2 * embed
        layer += (inner + 2 * kv if self.qkv_bias else 0) + (embed if self.output_bias else 0)
        layer += 2 * self.head_dim if self.qk_norm else 0
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


@dataclasses.dataclass(frozen=True)
class Family:
    """A ``model_type`` of transformers.

    Attributes:
      architecture: class name in ``config.json``.
      defaults: value of each field that may be left out of ``config.json``.
    """

    architecture: str
    defaults: Mapping[str, Any]


_QWEN = dict(
    num_key_value_heads=32,
    max_position_embeddings=32768,
    use_sliding_window=False,
    sliding_window=4096,
    max_window_layers=28,
)
FAMILIES = {
    "llama": Family("LlamaForCausalLM", dict(max_position_embeddings=2048, bos_token_id=1, eos_token_id=2)),
    "mistral": Family(
        "MistralForCausalLM",
        dict(
            num_key_value_heads=8,
            max_position_embeddings=131072,
            sliding_window=4096,
            bos_token_id=1,
            eos_token_id=2,
        ),
    ),
    "qwen2": Family("Qwen2ForCausalLM", _QWEN),
    "qwen3": Family("Qwen3ForCausalLM", {**_QWEN, "head_dim": 128}),
}

# Fields that would change the function and that have one supported value; None and false are the same.
_SUPPORTED: dict[str, Any] = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "quantization_config": None,
    "use_mrope": False,
}


_NUMBER = (int | float, "a number")
_COUNT = (int, "an integer")
_DICT = (dict, "an object")
_SWITCH = (bool, "true or false")
# What a field may hold, besides null.
_KINDS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"), _COUNT),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"), _COUNT),
    **dict.fromkeys(("sliding_window", "max_window_layers", "original_max_position_embeddings"), _COUNT),
    **dict.fromkeys(("bos_token_id", "pad_token_id"), _COUNT),
    **dict.fromkeys(("rms_norm_eps", "rope_theta", "partial_rotary_factor"), _NUMBER),
    **dict.fromkeys(("rope_scaling", "rope_parameters"), _DICT),
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "use_sliding_window"), _SWITCH),
    "layer_types": (list, "a list"),
    "eos_token_id": (int | list, "an integer or a list of them"),
}


def _fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``LlamaConfig`` from a ``config.json`` in which ``LlamaConfig.refusals`` finds nothing missing."""
    family = raw["model_type"]
    raw = {**FAMILIES[family].defaults, **raw}
    heads, layers = raw["num_attention_heads"], raw["num_hidden_layers"]
    # transformers 5 keeps theta and scaling in one dict; files written before have two top-level fields.
    old, new = raw.get("rope_scaling") or {}, raw.get("rope_parameters") or {}
    theta = new.get("rope_theta", old.get("rope_theta", raw.get("rope_theta")))
    if theta is not None and not isinstance(theta, int | float):
        raise ModelConfigError(f"rope_theta is {theta!r}; expected a number")
    rope = dict(new or old)
    if raw.get("original_max_position_embeddings") is not None and rope:
        rope["original_max_position_embeddings"] = raw["original_max_position_embeddings"]
    length = raw["max_position_embeddings"]
    window, full = raw.get("sliding_window"), 0
    if family not in ("mistral", "qwen2", "qwen3"):
        window = None
    elif family != "mistral":
        window = window if raw["use_sliding_window"] else None
        types = raw.get("layer_types")
        full = raw["max_window_layers"] if types is None else types.count("full_attention")
    bias = bool(raw.get("attention_bias")) and family in ("llama", "qwen3")
    eos = raw.get("eos_token_id")
    return dict(
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        rope_theta=float(theta) if theta is not None else 10000.0,
        rope_scaling=RopeScaling.from_mapping(rope, length, "rope_parameters" if new else "rope_scaling"),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        family=family,
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=bias or family == "qwen2",
        output_bias=bias,
        qk_norm=family == "qwen3",
        sliding_window=window if window is None or full < layers else None,
        full_attention_layers=full if window is not None and full < layers else 0,
        max_position_embeddings=length,
        bos_token_id=raw.get("bos_token_id"),
        eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
        pad_token_id=raw.get("pad_token_id"),
    )


def _shortened(values: Any) -> str:
    text = repr(values)
    return text if len(text) < 80 else text[:77] + "..."
