"""The report on a model directory says what is there, agrees with the importer, and never stops half way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from configs import base
from rcjax.hf import convert
from rcjax.hf.inspect import inspect_model, shipped_configs
from rcjax.hf.load import ModelLoadError
from rcjax.hf.tokenizer import save_tokenizer, train_tokenizer
from rcjax.model import LlamaConfig
from tests.model.peers import random_params

CONFIG = LlamaConfig(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=12,
    family="qwen2",
    qkv_bias=True,
    tie_embeddings=True,
    sliding_window=64,
    full_attention_layers=1,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    bos_token_id=0,
    eos_token_id=1,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A bfloat16 checkpoint of random weights."""
    directory = tmp_path_factory.mktemp("models") / "model"
    save_tokenizer(train_tokenizer(["def add(a, b):\n    return a + b"] * 3, 300), directory)
    (directory / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    params = random_params(CONFIG, seed=0, dtype=np.float32)
    save_file(dict(convert.to_hf(CONFIG, params, ml_dtypes.bfloat16)), directory / "model.safetensors")
    return directory


@pytest.fixture
def directory(written, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(written, tmp_path / "model"))


def change(directory: Path, **fields) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def section(report: str, name: str) -> list[str]:
    """The lines of a section, without their margin."""
    lines = report.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(name + " "))
    margin = len(lines[first]) - len(lines[first].removeprefix(name).lstrip())
    last = first + 1
    while last < len(lines) and lines[last].startswith(" "):
        last += 1
    return [line[margin:] for line in lines[first:last]]


def made_for_it() -> ConfigDict:
    config = base.get_config()
    for field in ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"):
        config.model[field] = getattr(CONFIG, field)
    config.model.rope_theta = CONFIG.rope_theta
    return config


def test_a_whole_checkpoint(directory):
    other = made_for_it()
    other.model.rope_theta = 1e4
    report = inspect_model(directory, {"mine": made_for_it(), "other": other})
    # 300 * 32 in the table; a layer: q 32 * 48, k and v 32 * 24 each, o 48 * 32, biases 48 + 24 + 24, MLP 3 * 32 * 48,
    # two norms; and the last norm.
    layer = 32 * 48 + 2 * 32 * 24 + 48 * 32 + 96 + 3 * 32 * 48 + 64
    count = 300 * 32 + 2 * layer + 32
    assert count == CONFIG.num_params
    assert section(report, "family") == ["qwen2 (Qwen2ForCausalLM)"]
    assert section(report, "shape") == [
        "2 layers, hidden 32, FFN 48",
        "4 heads of 12, 2 key/value heads",
        "head tied to the embedding, biases on query, key and value, RMS norm epsilon 1e-06",
    ]
    assert section(report, "parameters") == [
        f"{count:,} (9,600 in embedding and head, {count - 9600:,} in layers and norms)",
        "config.json, the tensors that it asks for and the weight files agree",
    ]
    assert section(report, "memory")[0].startswith(f"float32 {count * 4 / 2**20:.2f} MiB, bfloat16 ")
    assert section(report, "memory")[1].startswith(f"training {count * 16 / 2**20:.2f} MiB: 16 bytes a parameter")
    rows, change, special = section(report, "vocabulary")
    assert rows == "embedding of 300 rows, tokenizer of 283 tokens"
    assert change == "all 7 block tokens are there; tables padded to 384 rows, a multiple of 128"
    assert special == "BOS 0 '<s>', EOS 1 '</s>', PAD 2 '<pad>'"
    assert section(report, "rope") == ["theta 1,000,000, no scaling; up to 4,096 positions"]
    assert section(report, "window") == ["64 positions in the last 1 of 2 layers"]
    assert section(report, "weights")[0].startswith("one file, 0.0")
    assert section(report, "weights")[0].endswith("MiB, bfloat16")
    assert section(report, "config") == ["configs/mine.py"]
    assert section(report, "refused") == ["nothing"]


def test_the_reference_model_and_its_base(golden):
    report = inspect_model(golden / "base_llama_rope4", {})
    assert section(report, "vocabulary") == [
        "embedding of 640 rows, tokenizer of 600 tokens",
        "7 of 7 block tokens to add: 607 tokens; tables padded to 640 rows, a multiple of 128",
        "BOS 0 '<s>', EOS 1 '</s>', PAD 2 '<pad>'",
    ]
    assert section(report, "rope") == ["theta 100,000, linear scaling, factor 4; up to 2,048 positions"]
    assert section(report, "window") == ["none: a token sees everything before it"]
    assert section(report, "config") == ["none; start from configs/base.py with --config.model.init=..."]
    assert section(report, "refused") == ["nothing"]
    assert "all 7 block tokens are there" in inspect_model(golden / "model_llama")


def test_everything_that_is_refused_is_listed_and_the_rest_still_reported(directory):
    change(
        directory,
        hidden_act="gelu",
        rope_parameters=None,
        rope_scaling={"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
        quantization_config={"quant_method": "gptq", "bits": 4},
    )
    (directory / "tokenizer.json").unlink()
    report = inspect_model(directory)
    refused = section(report, "refused")
    assert len(refused) == 4
    for sign in ("hidden_act is 'gelu'", "quantization_config is {", "rope_type is 'longrope'", "no tokenizer.json"):
        assert sum(sign in line for line in refused) == 1, sign
    assert section(report, "parameters")[0].startswith(f"{CONFIG.num_params:,} ")
    assert section(report, "rope")[0].startswith("theta 1,000,000, longrope scaling, short_factor [1.0]")


def test_an_unknown_family_is_reported_as_far_as_it_goes(directory):
    change(directory, model_type="gpt2", architectures=["GPT2LMHeadModel"])
    report = inspect_model(directory, {"mine": made_for_it()})
    assert section(report, "family") == ["'gpt2', not supported (GPT2LMHeadModel)"]
    assert "hidden_size 32" in section(report, "shape")[0]
    assert section(report, "parameters") == [f"{CONFIG.num_params:,} numbers in the weights"]
    assert section(report, "config")[0].startswith("none;")
    assert section(report, "refused") == ["- model_type is 'gpt2'; supported are 'llama', 'mistral', 'qwen2', 'qwen3'"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rope_scaling": "linear", "rope_parameters": None}, "- rope_scaling is 'linear'; expected an object"),
        ({"rms_norm_eps": "small"}, "- rms_norm_eps is 'small'; expected a number"),
    ],
)
def test_values_of_the_wrong_kind_are_a_refusal(directory, fields, said):
    change(directory, **fields)
    report = inspect_model(directory)
    assert said in section(report, "refused")
    assert section(report, "weights")[0].startswith("one file")


def test_missing_left_over_and_misshapen_tensors(directory):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    gone = tensors.pop("model.layers.1.mlp.up_proj.weight")
    tensors["model.layers.7.mlp.up_proj.weight"] = gone
    tensors["model.norm.weight"] = np.zeros(31, np.float32)
    tensors["model.layers.0.input_layernorm.weight"] = np.zeros(33, np.float32)
    save_file(tensors, path)
    report = inspect_model(directory)
    refused = "\n".join(section(report, "refused"))
    assert "lacks tensor model.layers.1.mlp.up_proj.weight" in refused
    assert "unexpected tensor model.layers.7.mlp.up_proj.weight" in refused
    assert "tensor model.norm.weight has shape [31], but config.json asks for [32]" in refused
    assert "tensor model.layers.0.input_layernorm.weight has shape [33]" in refused
    assert f"but the weight files hold {CONFIG.num_params - gone.size:,}" in section(report, "parameters")
    assert section(report, "weights")[0].endswith("bfloat16, float32")


def test_quantised_weights_without_a_word_in_the_config(directory):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((48, 32), np.int8)
    save_file(tensors, path)
    report = inspect_model(directory)
    (sentence,) = section(report, "refused")
    assert "model.layers.0.mlp.up_proj.weight has type I8; quantised weights are not supported" in sentence
    assert section(report, "weights")[0].endswith("bfloat16, I8")


def test_weights_that_can_not_be_read(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    report = inspect_model(directory)
    assert section(report, "weights") == ["can not be read; see below"]
    assert "model.safetensors is no whole safetensors file" in section(report, "refused")[0]
    path.rename(directory / "pytorch_model.bin")
    assert "pytorch_model.bin is a pickle" in section(inspect_model(directory), "refused")[0]


def test_weights_that_are_not_downloaded(directory):
    (directory / "model.safetensors").unlink()
    report = inspect_model(directory)
    assert section(report, "weights") == ["not downloaded"]
    assert section(report, "refused") == ["nothing so far; the weights have not been looked at"]
    index = {"metadata": {"total_size": 3 * 2**30}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert section(inspect_model(directory), "weights") == ["not downloaded; 2 shards, 3.00 GiB"]
    (directory / "model.safetensors.index.json").rename(directory / "pytorch_model.bin.index.json")
    assert "pytorch_model.bin.index.json names pickles" in section(inspect_model(directory), "refused")[0]


def test_a_tokenizer_that_is_larger_than_the_table(directory):
    change(directory, vocab_size=270)
    refused = "\n".join(section(inspect_model(directory), "refused"))
    assert "the tokenizer has 283 tokens" in refused
    assert "model.embed_tokens.weight has shape [300, 32]" in refused


def test_no_config_is_one_sentence(tmp_path):
    with pytest.raises(ModelLoadError, match=r"config\.json does not exist; give the directory of a Hugging Face"):
        inspect_model(tmp_path)


def test_only_files_with_a_shape_are_shipped_configs(tmp_path):
    package = tmp_path / "configs"
    package.mkdir()
    (package / "__init__.py").write_text("")
    shutil.copy(base.__file__, package / "base.py")
    (package / "no_config.py").write_text("x = 1\n")
    lines = ["from configs import base", "def get_config():", "    config = base.get_config()", "    return config"]
    (package / "no_shape.py").write_text("\n".join(lines))
    fields = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")
    lines[3:3] = [f"    config.model.{field} = 2" for field in fields]
    (package / "with_shape.py").write_text("\n".join(lines))
    found = shipped_configs(package)
    assert list(found) == ["with_shape"]
    assert found["with_shape"].model.head_dim == 2
