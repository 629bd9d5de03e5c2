"""A trained model as a Hugging Face directory, which is read again and compared before it gets its name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from rcjax import model as llama
from rcjax.blocks import END_OF_MESSAGE, Block, BlockType, Message, encode_prompt
from rcjax.hf import convert
from rcjax.hf.directory import whole_directory
from rcjax.hf.load import WEIGHTS, load_model
from rcjax.hf.tokenizer import codec, load_tokenizer, write_tokenizer
from rcjax.model import LlamaConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

DTYPES = ("float32", "bfloat16", "float16")
PROBE = 'Write a function `add(a, b)` that returns the sum of two numbers.\nassert add(1, 2) == 3, "sum"'


class ExportError(ValueError):
    """An export that can not be made or did not prove itself; the message says what is wrong."""


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
      directory: where it lies.
      num_params, num_bytes: of the weights.
      dtype: of the weights.
      logit_difference: largest difference of a logit on the probe prompt between the live weights and those read
        again; rounding to ``dtype`` is all there is in it, so it is 0 where that is the live weights' type.
    """

    directory: str
    num_params: int
    num_bytes: int
    dtype: str
    logit_difference: float

    def __str__(self) -> str:
        return (
            f"{self.directory}: {self.num_params:,} parameters in {self.dtype} ({self.num_bytes / 2**20:.1f} MiB), "
            f"read again: every tensor equal, logits of a probe prompt within {self.logit_difference:.1e}"
        )


def export(
    config: LlamaConfig,
    params: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    directory: str | Path,
    *,
    dtype: str = "float32",
    metadata: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Writes config, generation config, weights, tokenizer with chat template and a model card.

    All is written aside, opened again as any user would, compared with the live weights tensor by tensor and by
    logits on a probe prompt, and only then renamed: a directory that exists is whole. One that existed before is
    replaced at that moment.

    Args:
      params: the plain parameter dict, on whatever devices of this process.
      dtype: of the weights written, one of ``DTYPES``.
      metadata: for the model card: ``pass@1`` and ``config`` (of the run) are shown in their place, other entries in
        a table.

    Raises:
      ExportError: unknown dtype, a tokenizer that has more tokens than the model, a disk that is full, or a
        directory that reads back otherwise than written.
    """
    directory = Path(directory)
    if dtype not in DTYPES:
        raise ExportError(f"config.export.dtype is {dtype!r}; choices are {', '.join(DTYPES)}")
    plain = codec(tokenizer)
    if plain.vocab_size > config.vocab_size:
        raise ExportError(
            f"the tokenizer has {plain.vocab_size} tokens but the model {config.vocab_size}; "
            "export with the tokenizer that the model was trained with"
        )
    params = jax.tree.map(np.asarray, params)
    prompt = encode_prompt([Message("user", (Block(BlockType.TEXT, PROBE),))], plain)
    try:
        with whole_directory(directory) as partial:
            stops = [plain.eos_id, plain.special_ids[END_OF_MESSAGE]]
            _write_json(partial / "config.json", {**config.to_hf(), "dtype": dtype, "torch_dtype": dtype})
            _write_json(
                partial / "generation_config.json",
                {
                    "bos_token_id": plain.bos_id,
                    "eos_token_id": stops,
                    "pad_token_id": plain.pad_id,
                    "do_sample": False,
                    "max_new_tokens": 512,
                },
            )
            write_tokenizer(tokenizer, partial)
            num_bytes = _write_weights(config, params, partial / WEIGHTS, jnp.dtype(dtype))
            (partial / "README.md").write_text(
                _model_card(config, directory.name, dtype, dict(metadata or {})), encoding="utf-8"
            )
            difference = _prove(config, params, tokenizer, partial, jnp.dtype(dtype), prompt)
    except OSError as error:
        reason = error.strerror or error
        raise ExportError(f"{directory} can not be written ({reason}); free space or name another place") from error
    return ExportReport(str(directory), config.num_params, num_bytes, dtype, difference)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_weights(config: LlamaConfig, params: dict[str, Any], path: Path, dtype: np.dtype) -> int:
    """Writes the tensors under their Hugging Face names; returns their bytes."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    tensors = dict(convert.to_hf(config, params, dtype))
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # how the library reports a full disk
        raise OSError(str(error)) from error
    return sum(tensor.nbytes for tensor in tensors.values())


def _prove(
    config: LlamaConfig,
    params: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    directory: Path,
    dtype: np.dtype,
    prompt: list[int],
) -> float:
    """Opens what was written and compares it with what lives; returns the largest difference of a logit."""
    read_config, read_params = load_model(directory)
    if read_config != config:
        fields = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(read_config, f.name)]
        raise ExportError(f"config.json reads back with another {fields[0]}: this model can not be exported")
    written = convert.to_hf(read_config, read_params)
    for (name, live), (_, read) in zip(convert.to_hf(config, params, dtype), written, strict=True):
        if live.dtype != read.dtype or live.tobytes() != read.tobytes():
            raise ExportError(f"{WEIGHTS}: tensor {name} reads back otherwise than it was written; try another disk")
    again = load_tokenizer(directory)
    question = [{"role": "user", "content": PROBE}]
    if again.apply_chat_template(question, add_generation_prompt=True, return_dict=False) != prompt:
        raise ExportError("the chat template does not render the training format; use rcjax.hf.tokenizer.CHAT_TEMPLATE")
    rounded = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    live, expected, read = (_logits(config, tree, prompt) for tree in (params, rounded, read_params))
    if not np.all(np.isfinite(read)):
        raise ExportError("the model gives logits that are not finite on a probe prompt; its training has diverged")
    if not np.array_equal(read, expected):
        raise ExportError("logits of a probe prompt differ once the weights are read again; try another disk")
    return float(np.max(np.abs(live - read)))


def _logits(config: LlamaConfig, params: dict[str, Any], tokens: list[int]) -> np.ndarray:
    """float32 [S, V] of one prompt; numpy weights, so that it runs on one device whatever the mesh is."""
    row = np.asarray([tokens], np.int32)
    positions = np.arange(row.shape[1], dtype=np.int32)[None]

    @jax.jit
    def run(params):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        hidden = llama.apply(config, params, row, positions, np.ones_like(row), scan_layers=True, attention="blocks")
        return (hidden @ llama.head_kernel(config, params))[0]

    return np.asarray(run(params))


def _model_card(config: LlamaConfig, name: str, dtype: str, metadata: dict[str, Any]) -> str:
    """README.md of the directory."""
    score, run = metadata.pop("pass@1", None), metadata.pop("config", None)
    facts = {
        "architecture": "Llama",
        "parameters": f"{config.num_params:,}",
        "layers": config.num_layers,
        "hidden size": config.hidden_size,
        "heads (key/value)": f"{config.num_heads} ({config.num_kv_heads})",
        "vocabulary": config.vocab_size,
        "context": config.max_position_embeddings,
        "weights": dtype,
        **metadata,
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [code, llama, rcjax, self-distillation]",
        "---",
        "",
        f"# {name}",
        "",
        "A one-off code model: it was trained with rcjax, by the method of ReflectionCoder",
        "([arXiv 2405.17057](https://arxiv.org/abs/2405.17057)), on traces of attempt, execution feedback, reflection",
        "and correction, and writes the program in one go.",
        "",
        "| | |",
        "|---|---|",
        table,
        "",
    ]
    if score is not None:
        lines += [f"pass@1, greedy, on the run's held-out tasks: **{float(score):.1%}**", ""]
    lines += [
        "## How to prompt",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'path = "."  # this directory',
        "tokenizer = AutoTokenizer.from_pretrained(path)",
        "model = AutoModelForCausalLM.from_pretrained(path)",
        'messages = [{"role": "user", "content": "Write a function ..."}]',
        'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", '
        "return_dict=True)",
        "output = model.generate(**inputs)",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        "```",
        "",
        "The answer is a fenced Python block. Generation ends at `<|endofmessage|>` (see `generation_config.json`).",
        "A message's content may also be a list of typed blocks, `{type: text | code | execution, content: ...}`.",
        "",
    ]
    if run is not None:
        lines += ["## Training run", "", "```json", json.dumps(run, indent=2, default=str), "```", ""]
    return "\n".join(lines)
