"""What is exported is what was trained: for us, for transformers, and after any accident."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcjax import blocks, decode
from rcjax.hf import convert
from rcjax.hf.directory import whole_directory
from rcjax.hf.export import ExportError, export
from rcjax.hf.load import ModelLoadError, load_model
from rcjax.hf.tokenizer import codec, train_tokenizer
from rcjax.model import LlamaConfig, ModelConfigError, abstract_params
from tests.model.peers import random_params, torch, transformers

FIELDS = dict(hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=12)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["def add(a, b):\n    return a + b", "Write a function that adds."] * 3, 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        rope_scaling={"rope_type": "linear", "factor": 2.0},
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        **FIELDS,
    )
    return config, random_params(config, seed=0, dtype=np.float32)


@pytest.fixture(scope="module")
def exported(tokenizer, model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("export") / "model"
    report = export(*model, tokenizer, directory, metadata={"pass@1": 0.5, "config": {"seed": 1}, "data": "ours"})
    assert report.logit_difference == 0
    assert report.num_params == model[0].num_params
    assert "pass@1, greedy, on the run's held-out tasks: **50.0%**" in (directory / "README.md").read_text()
    return directory


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of the export that a test may damage."""
    import shutil

    return shutil.copytree(exported, tmp_path / "model")


def test_loading_gives_back_every_bit(model, exported):
    config, params = load_model(exported)
    assert config == model[0]
    jax.tree.map(lambda a, b: (np.testing.assert_array_equal(a, b), a.dtype == b.dtype), params, model[1])


def test_transformers_gives_the_same_logits_and_text(model, exported):
    config, params = model
    plain = codec(transformers.AutoTokenizer.from_pretrained(exported))
    peer = transformers.AutoModelForCausalLM.from_pretrained(exported)
    assert type(peer).__name__ == "LlamaForCausalLM"
    assert peer.dtype == torch.float32
    turn = blocks.Message("user", (blocks.Block(blocks.BlockType.TEXT, "Add 1 and 2.\n"),))
    prompt = blocks.encode_prompt([turn], plain)
    from rcjax import model as llama

    row = jnp.asarray([prompt])
    hidden = llama.apply(config, params, row, jnp.arange(row.shape[1])[None], jnp.ones_like(row))
    with torch.no_grad():
        theirs = peer(torch.tensor([prompt])).logits.numpy()
        generated = peer.generate(torch.tensor([prompt]), max_new_tokens=40)[0, len(prompt) :].tolist()
    np.testing.assert_allclose(hidden @ llama.head_kernel(config, params), theirs, rtol=1e-4, atol=1e-4)
    stops = peer.generation_config.eos_token_id
    assert stops == [1, plain.special_ids[blocks.END_OF_MESSAGE]]
    ours = decode.generate(config, params, [prompt], max_new_tokens=40, stop_ids=stops)[0]
    assert ours == (generated[:-1] if generated[-1] in stops else generated)


def test_chat_template_gives_the_prompt_of_training(exported):
    loaded = transformers.AutoTokenizer.from_pretrained(exported)
    turn = blocks.Message("user", (blocks.Block(blocks.BlockType.TEXT, "Add 1 and 2."),))
    chat = [{"role": "user", "content": "Add 1 and 2."}]
    ids = loaded.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ids == blocks.encode_prompt([turn], codec(loaded))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_types_are_rounded_once(model, tokenizer, tmp_path, dtype):
    report = export(*model, tokenizer, tmp_path / "narrow", dtype=dtype)
    _, params = load_model(tmp_path / "narrow")
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(dtype)), params, model[1])
    assert report.logit_difference > 0
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "narrow").dtype == getattr(torch, dtype)


def test_a_tied_model_holds_its_table_once(tokenizer, tmp_path):
    config = LlamaConfig(vocab_size=len(tokenizer), tie_embeddings=True, attention_bias=True, **FIELDS)
    params = random_params(config, seed=1, dtype=np.float32)
    export(config, params, tokenizer, tmp_path / "tied")
    names = dict(convert.to_hf(*load_model(tmp_path / "tied")))
    assert "lm_head.weight" not in names
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "tied")
    assert sum(parameter.numel() for parameter in peer.parameters()) == config.num_params


def test_an_existing_directory_is_replaced_only_by_a_whole_one(model, tokenizer, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "mine").write_text("x")
    config, params = model
    broken = jax.tree.map(np.copy, params)
    broken["norm"]["scale"][0] = np.nan  # written whole, but can not prove itself
    with pytest.raises(ExportError, match="its training has diverged"):
        export(config, broken, tokenizer, target)
    assert (target / "mine").exists()
    assert os.listdir(tmp_path) == ["model"]
    export(config, params, tokenizer, target)
    assert not (target / "mine").exists()
    assert os.listdir(tmp_path) == ["model"]


def test_a_killed_writer_leaves_no_directory(tmp_path):
    script = (
        "import os, sys, signal; from rcjax.hf.directory import whole_directory\n"
        "with whole_directory(sys.argv[1]) as partial:\n"
        "    (partial / 'half').write_text('x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "model")], env={"PYTHONPATH": "."})
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    with whole_directory(tmp_path / "model") as partial:
        assert not list(partial.iterdir())  # nothing of the killed attempt is mixed in
        (partial / "whole").write_text("x")
    assert os.listdir(tmp_path) == ["model"]


def test_an_export_that_can_not_be_made_says_why(model, tokenizer, tmp_path):
    config, params = model
    with pytest.raises(ExportError, match=r"config\.export\.dtype is 'int4'; choices are float32"):
        export(config, params, tokenizer, tmp_path / "x", dtype="int4")
    small = LlamaConfig(vocab_size=100, **FIELDS)
    with pytest.raises(ExportError, match=r"the tokenizer has .* tokens but the model 100"):
        export(small, random_params(small, 0, np.float32), tokenizer, tmp_path / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="can not be written"):
        export(config, params, tokenizer, tmp_path / "file" / "x")
    assert os.listdir(tmp_path) == ["file"]


def rewrite(directory, change):
    """Applies ``change`` to the dict of tensors of an export."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def test_damaged_weights_are_named_in_one_sentence(copy):
    path = copy / "model.safetensors"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:5], b""):
        path.write_bytes(content)
        with pytest.raises(ModelLoadError, match=r"model\.safetensors is no whole safetensors file .*; copy it again$"):
            load_model(copy)
    path.write_bytes(whole)
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(copy, lambda tensors: tensors.pop(name))
    with pytest.raises(ModelLoadError, match=f"lacks tensor {name};"):
        load_model(copy)
    rewrite(copy, lambda tensors: tensors.update({name: np.zeros((3, 5), np.float32)}))
    with pytest.raises(ModelLoadError, match=rf"tensor {name} has shape \[3, 5\], but config.json asks for \[48, 32\]"):
        load_model(copy)
    rewrite(copy, lambda tensors: tensors.update({name: np.zeros((48, 32), np.int8)}))
    with pytest.raises(ModelLoadError, match=f"tensor {name} has type I8; quantised weights are not supported"):
        load_model(copy)
    rewrite(copy, lambda t: t.update({name: np.zeros((48, 32), np.float32), "extra": np.zeros(1, np.float32)}))
    with pytest.raises(ModelLoadError, match="has unexpected tensor extra;"):
        load_model(copy)
    path.unlink()
    with pytest.raises(ModelLoadError, match=r"has neither model\.safetensors nor model\.safetensors\.index\.json"):
        load_model(copy)
    (copy / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(
        ModelLoadError, match=r"pytorch_model\.bin is a pickle, which is not read: save the model again"
    ):
        load_model(copy)


def test_shards_with_an_index_are_read(copy, model):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for shard, members in shards.items():
        save_file({name: tensors[name] for name in members}, copy / shard)
    index = {"weight_map": {name: shard for shard, members in shards.items() for name in members}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    _, params = load_model(copy)
    jax.tree.map(np.testing.assert_array_equal, params, model[1])
    (copy / "b.safetensors").unlink()
    with pytest.raises(
        ModelLoadError, match=r"b\.safetensors does not exist, but model\.safetensors\.index\.json names"
    ):
        load_model(copy)


def test_config_is_read_in_both_forms_and_refused_by_field():
    config = LlamaConfig(
        vocab_size=50,
        rope_theta=1e5,
        rope_scaling={"rope_type": "linear", "factor": 4.0},
        eos_token_id=(1, 2),
        **FIELDS,
    )
    raw = config.to_hf()
    assert LlamaConfig.from_hf(json.loads(json.dumps(raw))) == config
    old = {key: value for key, value in raw.items() if key != "rope_parameters"}
    new = {key: value for key, value in raw.items() if key not in ("rope_theta", "rope_scaling")}
    older = {**old, "rope_scaling": {"type": "linear", "factor": 4.0}}
    assert [LlamaConfig.from_hf(form) for form in (old, new, older)] == [config] * 3
    # What transformers itself makes of our file must be what it writes back.
    assert LlamaConfig.from_hf(transformers.LlamaConfig(**raw).to_dict()) == config
    for change, message in (
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.rope_type is 'yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope_scaling.factor is None"),
        ({"hidden_size": None}, "field hidden_size is missing"),
        ({"num_key_value_heads": 3}, "num_kv_heads is 3, which does not divide num_heads=4"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"num_hidden_layers": "2"}, "num_layers is '2'"),
    ):
        with pytest.raises(ModelConfigError, match="config.json: .*" + message):
            LlamaConfig.from_hf({**raw, **change})


def test_parameters_and_flops_are_counted_exactly():
    for fields in (dict(), dict(tie_embeddings=True), dict(attention_bias=True)):
        config = LlamaConfig(vocab_size=50, **FIELDS, **fields)
        assert config.num_params == sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
        # 2 FLOPs for each entry of each matrix, plus scores and values: 4 * heads * head_dim per layer and key.
        matrices = config.num_params - (0 if config.tie_embeddings else 50 * 32) - 5 * 32
        matrices -= 2 * (48 + 2 * 24 + 32) if config.attention_bias else 0
        assert config.flops_per_token(10) == 2 * matrices + 2 * 4 * 48 * 10
        assert config.flops_per_token(10, head=False) == 2 * (matrices - 50 * 32) + 2 * 4 * 48 * 10
