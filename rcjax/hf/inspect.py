"""What a model directory holds, and whether it can be imported: the report of ``--mode=inspect``."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from rcjax.blocks import SPECIAL_TOKENS
from rcjax.hf.base_model import REQUIRED, shape_fields
from rcjax.hf.convert import tensor_specs
from rcjax.hf.load import INDEX, WEIGHTS, ModelLoadError, check_tensors, check_vocabulary, read_json
from rcjax.hf.safetensors_reader import FLOATS, StoredTensor, Weights
from rcjax.hf.tokenizer import TokenizerError, load_tokenizer
from rcjax.hf.vocabulary import add_block_tokens
from rcjax.model import LlamaConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Bytes a parameter takes while it is trained: what `train.state` and the gradient sums of `train.step` hold.
TRAINING = {"float32 weights": 4, "gradients": 4, "AdamW moments": 8}
STORED = {"float32": 4, "bfloat16": 2, "float16": 2}
# Rows of a padded table where no config file says otherwise (configs/base.py).
VOCAB_MULTIPLE = 128
PICKLE_INDEX = "pytorch_model.bin.index.json"
# Of one kind in a report.
MOST_PROBLEMS = 10

Lines = list[str]


def inspect_model(directory: Path, configs: Mapping[str, ConfigDict] | None = None) -> str:
    """The report, as far as the files allow; what an import would refuse is listed at its end.

    Args:
      directory: with a ``config.json``; the weights may be missing.
      configs: what ``shipped_configs`` gives.

    Raises:
      ModelLoadError: there is no ``config.json``, or it can not be read.
    """
    configs = configs or {}
    raw = read_json(directory / "config.json")
    refusals = _refusals(raw)
    model = _readable(raw)
    stored, weights = _weights(directory, model, refusals)
    sections: dict[str, Lines] = {
        "checkpoint": [str(directory)],
        "family": [_family(raw, model)],
        "shape": _shape(raw, model),
        "parameters": _parameters(model, stored),
    }
    if model is not None:
        sections["memory"] = _memory(model.num_params)
        sections["vocabulary"] = _vocabulary(directory, model, _multiple(configs), refusals)
        sections["rope"] = [_rope(raw, model)]
        sections["window"] = [_window(model)]
    sections["weights"] = weights
    sections["config"] = [_fitting(model, configs)]
    nothing = "nothing" if stored else "nothing so far; the weights have not been looked at"
    sections["refused"] = [f"- {sentence}" for sentence in dict.fromkeys(refusals)] or [nothing]
    width = max(map(len, sections)) + 2
    return "\n".join(
        f"{name if number == 0 else '':<{width}}{line}"
        for name, lines in sections.items()
        for number, line in enumerate(lines)
    )


def shipped_configs(directory: Path) -> dict[str, ConfigDict]:
    """The config files of a directory that state a model's shape: name without ``.py`` -> config."""
    found = {}
    for path in sorted(directory.glob("*.py")):
        if path.stem.startswith("_") or path.stem == "base":
            continue
        config = read_config_file(path)
        if config is not None and "model" in config and all(config.model[field] is not None for field in REQUIRED):
            found[path.stem] = config
    return found


def read_config_file(path: Path) -> ConfigDict | None:
    """The config that a Python file makes; None where it has no ``get_config``."""
    spec = importlib.util.spec_from_file_location(f"config_file_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    root = str(path.resolve().parent.parent)  # the files import their neighbours as `configs.base`
    sys.path.insert(0, root)
    try:
        spec.loader.exec_module(module)
        return module.get_config() if hasattr(module, "get_config") else None
    finally:
        sys.path.remove(root)


def _refusals(raw: Mapping[str, Any]) -> Lines:
    """``LlamaConfig.refusals``, which takes for granted that numbers are numbers."""
    try:
        return list(LlamaConfig.refusals(raw))
    except (AttributeError, TypeError, ValueError) as error:
        return [f"config.json holds a value of the wrong kind ({error}); copy the file again"]


def _readable(raw: Mapping[str, Any]) -> LlamaConfig | None:
    """The model with the refused fields left out of ``raw``; None where that is not enough to read its shape."""
    raw = dict(raw)
    while problems := _refusals(raw):
        fields = {re.match(r"\w+", problem).group() for problem in problems}
        refused = [field for field in fields if field in raw and field != "model_type"]
        if not refused:
            return None
        for field in refused:
            del raw[field]
    return LlamaConfig.from_hf(raw)


def _family(raw: Mapping[str, Any], model: LlamaConfig | None) -> str:
    names = ", ".join(map(str, raw.get("architectures") or []))
    kind = model.family if model else f"{raw.get('model_type')!r}, not supported"
    return f"{kind} ({names})" if names else kind


def _shape(raw: Mapping[str, Any], model: LlamaConfig | None) -> Lines:
    if model is None:
        numbers = ((field, raw[field]) for field in sorted(raw) if re.match("hidden_size|num_|n_|intermediate", field))
        return [", ".join(f"{field} {_number(value)}" for field, value in numbers) or "not stated"]
    extras = [
        "head tied to the embedding" if model.tie_embeddings else "head of its own",
        *(["biases on query, key and value"] if model.qkv_bias else []),
        *(["bias on the attention output"] if model.output_bias else []),
        *(["RMS norm on queries and keys"] if model.qk_norm else []),
        f"RMS norm epsilon {model.rms_norm_eps:g}",
    ]
    return [
        f"{model.num_layers} layers, hidden {model.hidden_size:,}, FFN {model.intermediate_size:,}",
        f"{model.num_heads} heads of {model.head_dim}, {model.num_kv_heads} key/value heads",
        ", ".join(extras),
    ]


def _parameters(model: LlamaConfig | None, stored: Mapping[str, StoredTensor]) -> Lines:
    """The number from the shape, from the list of tensors and from the weights' headers."""
    if model is None:
        total = sum(math.prod(tensor.shape) for tensor in stored.values())
        return [f"{total:,} numbers in the weights" if stored else "not known"]
    specs = {spec.name: spec.shape for spec in tensor_specs(model)}
    listed = sum(map(math.prod, specs.values()))  # independent of LlamaConfig.num_params, which is a formula
    tables = model.vocab_size * model.hidden_size * (1 if model.tie_embeddings else 2)
    rest = model.num_params - tables
    lines = [f"{model.num_params:,} ({tables:,} in embedding and head, {rest:,} in layers and norms)"]
    if listed != model.num_params:
        return [*lines, f"but the tensors that config.json asks for hold {listed:,}"]
    if not stored:
        return [*lines, "counted from config.json, and equal to the sum over the tensors that it asks for"]
    held = sum(math.prod(stored[name].shape) for name in specs if name in stored)
    if held != listed:
        return [*lines, f"but the weight files hold {held:,}"]
    return [*lines, "config.json, the tensors that it asks for and the weight files agree"]


def _memory(num_params: int) -> Lines:
    sizes = ", ".join(f"{dtype} {_gib(num_params * size)}" for dtype, size in STORED.items())
    parts = " + ".join(f"{size} {name}" for name, size in TRAINING.items())
    each = sum(TRAINING.values())
    return [sizes, f"training {_gib(num_params * each)}: {each} bytes a parameter ({parts}), activations apart"]


def _vocabulary(directory: Path, model: LlamaConfig, multiple: int, refusals: Lines) -> Lines:
    rows = f"embedding of {model.vocab_size:,} rows"
    try:
        tokenizer = load_tokenizer(directory)
        grown, plan = add_block_tokens(tokenizer, bos_token_id=model.bos_token_id)
    except TokenizerError as error:
        refusals.append(str(error))
        return [rows]
    try:
        check_vocabulary(directory, model.vocab_size, plan)
    except ModelLoadError as error:
        refusals.append(str(error))
    known = tokenizer.get_vocab()
    lacking = [token for token in SPECIAL_TOKENS if token not in known]
    padded = dataclasses.replace(model, vocab_size=plan.new_size, vocab_multiple=multiple).table_size
    if lacking:
        change = f"{len(lacking)} of {len(SPECIAL_TOKENS)} block tokens to add: {plan.new_size:,} tokens"
    else:
        change = f"all {len(SPECIAL_TOKENS)} block tokens are there"
    return [
        f"{rows}, tokenizer of {plan.old_size:,} tokens",
        f"{change}; tables padded to {padded:,} rows, a multiple of {multiple}",
        ", ".join(_special(name, tokenizer, grown) for name in ("bos", "eos", "pad")),
    ]


def _special(name: str, tokenizer: PreTrainedTokenizerFast, grown: PreTrainedTokenizerFast) -> str:
    """``BOS 1 '<s>'``; where the import settles it otherwise, that too."""

    def told(which: PreTrainedTokenizerFast) -> str:
        token = getattr(which, f"{name}_token")
        return "none" if token is None else f"{getattr(which, f'{name}_token_id')} {token!r}"

    before, after = told(tokenizer), told(grown)
    return f"{name.upper()} {before}" + (f" (here {after})" if before != after else "")


def _rope(raw: Mapping[str, Any], model: LlamaConfig) -> str:
    """From ``raw``, since ``model`` lacks a type that is refused."""
    stated = (raw.get("rope_parameters"), raw.get("rope_scaling"))
    rope = next((fields for fields in stated if fields and isinstance(fields, Mapping)), {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    hidden = ("rope_type", "type", "rope_theta")
    numbers = [f"{key} {_number(value)}" for key, value in rope.items() if value is not None and key not in hidden]
    theta = rope.get("rope_theta") or raw.get("rope_theta") or model.rope_theta
    what = "no scaling" if kind == "default" else ", ".join([f"{kind} scaling", *numbers])
    return f"theta {_number(theta)}, {what}; up to {_number(model.max_position_embeddings)} positions"


def _window(model: LlamaConfig) -> str:
    if model.sliding_window is None:
        return "none: a token sees everything before it"
    where = "in every layer"
    if model.full_attention_layers:
        where = f"in the last {model.num_layers - model.full_attention_layers} of {model.num_layers} layers"
    return f"{model.sliding_window:,} positions {where}"


def _weights(directory: Path, model: LlamaConfig | None, refusals: Lines) -> tuple[Mapping[str, StoredTensor], Lines]:
    """The tensors of the weight files by name (empty where they can not be read), and what there is to say."""
    if not any(path.suffix in (".safetensors", ".bin") for path in directory.iterdir()):
        return {}, [_not_downloaded(directory, refusals)]
    try:
        with Weights(directory) as weights:
            stored = dict(weights)
    except ModelLoadError as error:
        refusals.append(str(error))
        return {}, ["can not be read; see below"]
    if model is not None:
        refusals += _tensor_problems(directory, stored, model)
    files = {tensor.path for tensor in stored.values()}
    form = "one file" if (directory / WEIGHTS).exists() else f"{len(files)} shards"
    size = sum(path.stat().st_size for path in files)
    kinds = sorted({tensor.dtype for tensor in stored.values()})
    return stored, [f"{form}, {_gib(size)}, {', '.join(str(FLOATS.get(kind, kind)) for kind in kinds)}"]


def _not_downloaded(directory: Path, refusals: Lines) -> str:
    """A directory with the small files alone, as a look at a Hub id fetches them."""
    if not (directory / INDEX).exists():
        if (directory / PICKLE_INDEX).exists():
            refusals.append(
                f"{PICKLE_INDEX} names pickles, which are not read; save the model again with "
                "save_pretrained(..., safe_serialization=True), or take a revision that has safetensors"
            )
        return "not downloaded"
    try:
        listing = read_json(directory / INDEX)
    except ModelLoadError as error:
        refusals.append(str(error))
        return "not downloaded"
    size = (listing.get("metadata") or {}).get("total_size")
    shards = len(set((listing.get("weight_map") or {}).values()))
    return f"not downloaded; {shards} shards" + (f", {_gib(size)}" if size else "")


def _tensor_problems(directory: Path, stored: Mapping[str, StoredTensor], model: LlamaConfig) -> Lines:
    """Why an import would stop, and beyond the first the other tensors of a wrong shape."""
    try:
        check_tensors(directory, model)
        return []
    except ModelLoadError as error:
        problems = [str(error)]
    for spec in tensor_specs(model):
        told = f"tensor {spec.name} has shape"
        if spec.name in stored and stored[spec.name].shape != spec.shape and told not in problems[0]:
            problems.append(f"{told} {list(stored[spec.name].shape)}, but config.json asks for {list(spec.shape)}")
    more = len(problems) - MOST_PROBLEMS
    return problems if more <= 0 else [*problems[:MOST_PROBLEMS], f"{more} more tensors have another shape"]


def _multiple(configs: Mapping[str, ConfigDict]) -> int:
    return next((config.model.vocab_multiple for config in configs.values()), VOCAB_MULTIPLE)


def _fitting(model: LlamaConfig | None, configs: Mapping[str, ConfigDict]) -> str:
    names = [f"configs/{name}.py" for name, config in configs.items() if model is not None and _fits(model, config)]
    return ", ".join(names) or "none; start from configs/base.py with --config.model.init=..."


def _fits(model: LlamaConfig, config: ConfigDict) -> bool:
    """Whether every field of the shape that the config states is the model's."""
    given = shape_fields(config.model)
    try:
        stated = dataclasses.replace(model, **given)
    except ValueError:  # such a model can not be: heads that do not divide, for example
        return False
    return all(getattr(stated, field) == getattr(model, field) for field in given)


def _number(value: Any) -> str:
    """With thousands separators, without a needless fraction."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{int(value):,}" if value == int(value) else f"{value:,}"


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:,.2f} MiB"
