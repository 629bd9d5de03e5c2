"""What is exported is what was trained: for us, for transformers, and after any accident."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcjax import blocks, decode
from rcjax import model as llama
from rcjax.hf import convert
from rcjax.hf.export import DTYPES, PROBE, ExportError, export, export_steps, parse_size
from rcjax.hf.load import load_model
from rcjax.hf.model_card import model_card
from rcjax.hf.proof import Proof
from rcjax.hf.safetensors_writer import SafetensorsWriter
from rcjax.hf.tokenizer import codec, save_tokenizer, train_tokenizer
from rcjax.model import LlamaConfig, ModelConfigError, abstract_params
from tests.hf.export_worker import laid_out, small_model
from tests.model.peers import random_params, torch, transformers, transformers_model

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
    with torch.no_grad():
        theirs = peer(torch.tensor([prompt])).logits.numpy()
        generated = peer.generate(torch.tensor([prompt]), max_new_tokens=40)[0, len(prompt) :].tolist()
    np.testing.assert_allclose(logits(config, params, prompt), theirs, rtol=1e-4, atol=1e-4)
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
    assert 0 < report.logit_difference < (1 if dtype == "bfloat16" else 0.1)
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "narrow").dtype == getattr(torch, dtype)


def test_a_tied_model_holds_its_table_once(tokenizer, tmp_path):
    config = LlamaConfig(vocab_size=len(tokenizer), tie_embeddings=True, qkv_bias=True, output_bias=True, **FIELDS)
    params = random_params(config, seed=1, dtype=np.float32)
    ticks = []
    report = export(config, params, tokenizer, tmp_path / "tied", on_advance=ticks.append)
    assert report.logit_difference == 0
    assert sum(ticks) == export_steps(config) == 2 * (2 + 2 * 13)
    names = dict(convert.to_hf(*load_model(tmp_path / "tied")))
    assert "lm_head.weight" not in names
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "tied")
    assert sum(parameter.numel() for parameter in peer.parameters()) == config.num_params


def logits(config, params, tokens):
    """By ``llama.apply``, all layers at once."""
    row = jnp.asarray([tokens])
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    hidden = jax.jit(llama.apply, static_argnums=0)(
        config, params, row, jnp.arange(row.shape[1])[None], jnp.ones_like(row)
    )
    return np.asarray(hidden @ llama.head_kernel(config, params))[..., : config.vocab_size]


def digests(directory, pattern="*"):
    """File name -> sha256."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.glob(pattern)}


def test_the_writer_makes_the_files_of_the_library(tmp_path):
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    tensors = {f"layers.{i}.é": rng.normal(size=(i + 1, 3)).astype(np.float32) for i in (0, 10, 2)}
    tensors |= {"empty": np.zeros((0, 4), np.float32), "scalar": np.array(3, np.float32)}
    for dtype in DTYPES:
        (tmp_path / dtype).mkdir()
        typed = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
        save_file(typed, tmp_path / "peer", metadata={"format": "pt"})
        with SafetensorsWriter(tmp_path / dtype, {"mine": {n: t.shape for n, t in typed.items()}}, dtype) as writer:
            with pytest.raises(ValueError, match=r"mine: tensor empty of shape .* is due, not scalar"):
                writer.append("scalar", typed["scalar"])
            for _, name in writer.order:
                # Not contiguous: the order of axes in memory is the writer's business.
                writer.append(name, np.array(typed[name], order="F"))
        assert (tmp_path / dtype / "mine").read_bytes() == (tmp_path / "peer").read_bytes()


LAYOUTS = {"one device": {}, "fsdp and tensor": dict(fsdp=4, tensor=2), "all axes": dict(data=2, fsdp=2, tensor=2)}


@pytest.mark.parametrize("tied", [False, True])
def test_files_do_not_depend_on_where_the_parameters_lie(tokenizer, tmp_path, tied):
    config, params = small_model(tokenizer, tie_embeddings=tied)
    assert config.table_size == 384  # 300 rows and padding
    export(config, params, tokenizer, tmp_path / "numpy" / "model", max_shard_size="60KB")
    expected = digests(tmp_path / "numpy" / "model")
    assert "model.safetensors.index.json" in expected
    for name, shape in LAYOUTS.items():
        placed = laid_out(config, params, shape) if shape else jax.device_put(params, jax.devices()[3])
        report = export(config, placed, tokenizer, tmp_path / name / "model", max_shard_size="60KB")
        assert report.logit_difference == 0
        assert digests(tmp_path / name / "model") == expected
    read_config, read = load_model(tmp_path / "numpy" / "model")
    assert read_config == dataclasses.replace(config, vocab_multiple=1)
    assert read["embed"]["embedding"].shape == (300, 32)
    np.testing.assert_array_equal(read["embed"]["embedding"], params["embed"]["embedding"][:300])


FAMILIES = {
    "llama": dict(qkv_bias=True, output_bias=True),
    "mistral": dict(sliding_window=24),
    "qwen2": dict(qkv_bias=True, tie_embeddings=True),
    "qwen3": dict(qk_norm=True),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_files_are_those_that_transformers_would_write(tokenizer, tmp_path, family):
    fields = {**FIELDS, "num_layers": 11, **FAMILIES[family]}  # 11, so that names in order are not layers in order
    config = LlamaConfig(vocab_size=len(tokenizer), vocab_multiple=64, family=family, **fields)
    params = random_params(config, seed=2, dtype=np.float32)
    peer = transformers_model(config, params, torch.float32)
    for size in (40, "30KB", 10**9):  # 40: a file for each tensor
        report = export(config, params, tokenizer, tmp_path / f"{size}", max_shard_size=size)
        peer.save_pretrained(tmp_path / f"{size} peer", max_shard_size=size)
        ours, theirs = (digests(tmp_path / name, "model*") for name in (f"{size}", f"{size} peer"))
        assert ours == theirs
        assert report.num_files == len(ours) - (len(ours) > 1)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"{size}")
        assert type(loaded).__name__.lower() == f"{family}forcausallm"
        tokens = torch.arange(40)[None]
        with torch.no_grad():
            torch.testing.assert_close(loaded(tokens).logits, peer(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_difference_of_logits_is_that_of_the_whole_model(tokenizer, tmp_path, family):
    config = LlamaConfig(vocab_size=len(tokenizer), vocab_multiple=64, family=family, **{**FIELDS, **FAMILIES[family]})
    params = random_params(config, seed=5, dtype=np.float32)
    report = export(config, params, tokenizer, tmp_path / "model", dtype="bfloat16")
    probe = blocks.Message("user", (blocks.Block(blocks.BlockType.TEXT, PROBE),))
    prompt = blocks.encode_prompt([probe], codec(tokenizer))
    rounded = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params)
    expected = np.abs(logits(config, params, prompt) - logits(config, rounded, prompt)).max()
    assert report.logit_difference == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_transformers_generates_the_tokens_of_our_own_decode(tokenizer, tmp_path, family):
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        vocab_multiple=64,
        family=family,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        **{**FIELDS, **FAMILIES[family]},
    )
    params = random_params(config, seed=4, dtype=np.float32)
    params["head"]["kernel"][:, 2] = 0  # our decode never says padding, and theirs does not want to then
    params["head"]["kernel"][:, 1] *= 2  # so that some continuations end
    export(config, params, tokenizer, tmp_path / "model")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "model", padding_side="left")
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    chats = [[{"role": "user", "content": f"Write {'a function that adds ' * (n % 5)}{n}."}] for n in range(20)]
    template = functools.partial(loaded.apply_chat_template, chats, add_generation_prompt=True)
    inputs = template(padding=True, return_tensors="pt", return_dict=True)
    theirs = peer.generate(**inputs, max_new_tokens=32)[:, inputs["input_ids"].shape[1] :].tolist()
    stops = peer.generation_config.eos_token_id
    theirs = [row[: next((i for i, token in enumerate(row) if token in stops), None)] for row in theirs]
    ours = decode.generate(config, params, template(return_dict=False), max_new_tokens=32, stop_ids=stops)
    assert ours == theirs
    assert len(set(map(tuple, ours))) > 10  # they say different things
    assert any(len(row) < 32 for row in ours)  # and some stop by themselves


def test_an_existing_directory_is_replaced_only_by_a_whole_one(model, tokenizer, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "mine").write_text("x")
    config, params = model
    broken = jax.tree.map(np.copy, params)
    broken["norm"]["scale"][0] = np.nan  # written whole, but can not prove itself
    with pytest.raises(ExportError, match="its training has diverged"):
        export(config, broken, tokenizer, target)
    large = jax.tree.map(np.copy, params)
    large["norm"]["scale"][0] = 1e6
    with pytest.raises(ExportError, match=r"in float16 the model gives logits that are not finite .* export in bfloat"):
        export(config, large, tokenizer, target, dtype="float16")
    assert (target / "mine").exists()
    assert os.listdir(tmp_path) == ["model"]
    export(config, params, tokenizer, target)
    assert not (target / "mine").exists()
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("offset", "message"),
    [
        (-5, r"model\.safetensors: tensor model\.norm\.weight reads back otherwise than it was written"),
        (-200_000, r"model\.safetensors: tensor \S+ reads back otherwise than it was written"),
        (9, r"model\.safetensors can not be read again"),
        (None, r"model\.safetensors can not be read again"),
    ],
)
def test_a_disk_that_gives_back_other_bytes_is_noticed(model, tokenizer, tmp_path, monkeypatch, offset, message):
    finish = SafetensorsWriter._finish

    def damage(writer):
        file = writer._open
        finish(writer)
        with open(file.name, "r+b") as again:
            if offset is None:  # the last bytes are lost
                again.truncate(os.path.getsize(file.name) - 4)
                return
            position = offset % os.path.getsize(file.name)
            again.seek(position)
            byte = again.read(1)
            again.seek(position)
            again.write(bytes([byte[0] ^ 1]))

    monkeypatch.setattr(SafetensorsWriter, "_finish", damage)
    with pytest.raises(ExportError, match=message):
        export(*model, tokenizer, tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_logits_must_be_equal_where_the_weights_are(model, tokenizer, tmp_path, monkeypatch):
    """A disk that gives other bytes at the second reading, which is what the model runs on."""
    again = Proof._read_ours

    def damage(proof, spec):
        tensor = again(proof, spec)
        tensor.reshape(-1)[0] += 0.1
        return tensor

    monkeypatch.setattr(Proof, "_read_ours", damage)
    with pytest.raises(ExportError, match="logits of a probe prompt differ once the weights are read again"):
        export(*model, tokenizer, tmp_path / "model")


def test_an_index_that_misleads_is_noticed(model, tokenizer, tmp_path, monkeypatch):
    from rcjax.hf import export as module

    def misplace(path, value, **style):
        if "weight_map" in value:
            value["weight_map"]["model.norm.weight"] = "model-00001-of-00003.safetensors"
        path.write_text(json.dumps(value))

    monkeypatch.setattr(module, "_write_json", misplace)
    with pytest.raises(ExportError, match="the files of weights do not hold what they should"):
        export(*model, tokenizer, tmp_path / "model", max_shard_size="50KB")


def test_a_killed_export_leaves_no_directory_and_the_next_one_works(model, tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    script = (
        "import os, signal, sys\n"
        "from rcjax.hf.export import export; from rcjax.hf.tokenizer import load_tokenizer\n"
        "from tests.hf.export_worker import small_model\n"
        "tokenizer = load_tokenizer(sys.argv[1] + '/tokenizer')\n"
        "kill = lambda count: os.kill(os.getpid(), signal.SIGKILL)\n"
        "export(*small_model(tokenizer), tokenizer, sys.argv[1] + '/out/model', on_advance=kill)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env={"PYTHONPATH": ".", "JAX_PLATFORMS": "cpu"}
    )
    assert done.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path / "out") == [".model.partial"]
    assert (tmp_path / "out" / ".model.partial" / "model.safetensors").exists()
    export(*model, tokenizer, tmp_path / "out" / "model")
    assert os.listdir(tmp_path / "out") == ["model"]


@contextlib.contextmanager
def file_limit(limit):
    """No file may grow beyond so many bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [300, 3000, 20_000, 100_000])  # config, tokenizer, weights: first and last tensor
def test_a_full_disk_is_one_sentence_and_nothing_is_left(model, tokenizer, tmp_path, limit):
    target = tmp_path / "model"
    with file_limit(limit), pytest.raises(ExportError) as error:
        export(*model, tokenizer, target)
    assert str(error.value) == f"{target} can not be written (File too large); free space or name another place"
    assert os.listdir(tmp_path) == []


def test_a_disk_without_room_is_one_sentence(model, tokenizer, tmp_path):
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", tmp_path], capture_output=True)
    if done.returncode:
        pytest.skip("a small file system can be mounted by root alone")
    try:
        with pytest.raises(ExportError, match=r"model can not be written \(No space left on device\); free space or"):
            export(*model, tokenizer, tmp_path / "model")
        assert os.listdir(tmp_path) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_an_export_that_can_not_be_made_says_why(model, tokenizer, tmp_path):
    config, params = model
    with pytest.raises(ExportError, match=r"config\.export\.dtype is 'int4'; choices are float32"):
        export(config, params, tokenizer, tmp_path / "x", dtype="int4")
    for size in ("many", "-5GB", "0", "0.0001KB", "5GiB", "GB", "", "nan", 0, -1, 1.5, True, "9" * 400):
        with pytest.raises(ExportError, match=r"^--max_shard_size=.* is not a size; give .* such as 5GB$"):
            export(config, params, tokenizer, tmp_path / "x", max_shard_size=size)
    small = LlamaConfig(vocab_size=100, **FIELDS)
    with pytest.raises(ExportError, match=r"the tokenizer has .* tokens but the model 100"):
        export(small, random_params(small, 0, np.float32), tokenizer, tmp_path / "x")
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / "file" / "x" / "y"):
        with pytest.raises(ExportError, match=r"^\S+/file is a file; name a directory to write or move the file away$"):
            export(config, params, tokenizer, target)
    assert os.listdir(tmp_path) == ["file"]


def test_sizes_are_read_as_transformers_reads_them():
    from huggingface_hub.serialization._base import parse_size_to_int

    for size in ("5GB", "200MB", "1.5 tb", " 3kb "):
        assert parse_size(size) == parse_size_to_int(size)
    assert parse_size(1234) == parse_size("1234") == 1234


def test_the_model_card_is_one_that_the_hub_takes(model, tokenizer, tmp_path, monkeypatch):
    from huggingface_hub import ModelCard

    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "local").mkdir(parents=True)
    data = {"data": "a | b\nc", "config": {"seed": 1}}
    for base, listed in (("org/name@v1.0", "org/name"), ("org/local", None), ("/some/where", None), (None, None)):
        config = dataclasses.replace(model[0], family="mistral", rope_scaling=None)
        text = model_card(config, "mine", "bfloat16", data | ({"base_model": base} if base else {}))
        card = ModelCard(text)
        assert card.data.base_model == listed
        assert card.data.tags == ["code", "mistral", "rcjax", "self-distillation"]
        assert f"| base model | {f'`{base}`' if base else 'none, trained from scratch'} |" in text
        assert "| architecture | MistralForCausalLM |" in text
        assert "| data | a \\| b c |" in text
        assert "vllm serve" in text


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
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters.rope_type is 'longrope'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
        ({"hidden_size": None}, "field hidden_size is missing"),
        ({"num_key_value_heads": 3}, "num_kv_heads is 3, which does not divide num_heads=4"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers is '2'; expected an integer"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps is 'x'; expected a number"),
        ({"rope_scaling": "x"}, "rope_scaling is 'x'; expected an object"),
        ({"max_position_embeddings": None}, "max_position_embeddings is None; expected an integer"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta is 'x'; expected a number"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; expected true or false"),
    ):
        with pytest.raises(ModelConfigError, match="config.json: .*" + message):
            LlamaConfig.from_hf({**raw, **change})


def test_parameters_and_flops_are_counted_exactly():
    for fields in (dict(), dict(tie_embeddings=True), dict(qkv_bias=True, output_bias=True)):
        config = LlamaConfig(vocab_size=50, **FIELDS, **fields)
        assert config.num_params == sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
        # 2 FLOPs for each entry of each matrix, plus scores and values: 4 * heads * head_dim per layer and key.
        matrices = config.num_params - (0 if config.tie_embeddings else 50 * 32) - 5 * 32
        matrices -= 2 * (48 + 2 * 24 + 32) if config.qkv_bias else 0
        assert config.flops_per_token(10) == 2 * matrices + 2 * 4 * 48 * 10
        assert config.flops_per_token(10, head=False) == 2 * (matrices - 50 * 32) + 2 * 4 * 48 * 10
