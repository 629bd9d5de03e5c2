"""README.md of an exported model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rcjax.model import LlamaConfig

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def model_card(config: LlamaConfig, name: str, dtype: str, metadata: Mapping[str, Any]) -> str:
    """What the model is, what it started from, how it was trained and measured, and how to prompt it.

    Args:
      config: the model's shape.
      name: of the model.
      dtype: of the weights.
      metadata: ``pass@1``, ``config`` (of the run) and ``base_model`` (Hub id or directory) are shown in their place,
        other entries in a table.
    """
    metadata = dict(metadata)
    score, run, base = (metadata.pop(key, None) for key in ("pass@1", "config", "base_model"))
    facts = {
        "architecture": config.to_hf()["architectures"][0],
        "base model": f"`{base}`" if base else "none, trained from scratch",
        "parameters": f"{config.num_params:,}",
        "layers": config.num_layers,
        "hidden size": config.hidden_size,
        "heads (key/value)": f"{config.num_heads} ({config.num_kv_heads})",
        "vocabulary": f"{config.vocab_size:,}",
        "context": f"{config.max_position_embeddings:,}",
        "weights": dtype,
        **metadata,
    }
    # The Hub refuses a card whose base_model is no id, so a directory is named in the table alone.
    on_hub = base and _HUB_ID.fullmatch(str(base)) and not Path(str(base)).exists()
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        *([f"base_model: {str(base).split('@')[0]}"] if on_hub else []),
        f"tags: [code, {config.family}, rcjax, self-distillation]",
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
        *(f"| {_cell(key)} | {_cell(value)} |" for key, value in facts.items()),
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
        "As a server with the interface of OpenAI's, which takes template and stop tokens from this directory too:",
        "",
        "```bash",
        "vllm serve .",
        "```",
        "",
    ]
    if run is not None:
        lines += ["## Training run", "", "```json", json.dumps(run, indent=2, default=str), "```", ""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
