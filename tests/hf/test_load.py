"""A checkpoint arrives bit by bit as it is, wherever it is to lie; one that is not whole is refused in a sentence."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rcjax.hf import convert, load, piecewise
from rcjax.hf.convert import find, tensor_specs, to_hf
from rcjax.hf.load import ModelLoadError, check_tensors, load_config, load_model, load_params
from rcjax.hf.safetensors_reader import Weights
from rcjax.hf.tokenizer import load_tokenizer
from rcjax.hf.vocabulary import VocabularyPlan, add_block_tokens
from rcjax.model import LlamaConfig, ModelConfigError
from rcjax.sharding import make_mesh
from rcjax.train.state import state_shardings
from tests.processes import ended, free_port, start

FIELDS = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8
)
CONFIGS = {
    "llama": LlamaConfig(**FIELDS),
    "qwen2, tied": LlamaConfig(**FIELDS, family="qwen2", qkv_bias=True, tie_embeddings=True),
    "qwen3": LlamaConfig(**FIELDS, family="qwen3", qk_norm=True, qkv_bias=True, output_bias=True),
}
MESHES = {
    "one device": None,
    "replicated": dict(data=8),
    "columns": dict(fsdp=8),
    "rows": dict(tensor=2, data=4),
    "both": dict(tensor=2, fsdp=2, data=2),
}
# Every mesh once, every family at least once: each case compiles two dozen programs.
CASES = [("llama", "one device"), ("llama", "both"), ("qwen2, tied", "columns"), ("qwen3", "rows")]


def shardings(config, mesh):
    """Of the parameters, on the first device or on a mesh of all."""
    mesh = make_mesh(mesh) if mesh else make_mesh({}, jax.devices()[:1])
    return state_shardings(config, optax.identity(), mesh).params


def write(directory: Path, config: LlamaConfig, dtype=np.float32, shards: int = 1, seed: int = 0) -> dict:
    """A checkpoint of random numbers, written by the safetensors library; returns its tensors."""
    from safetensors.numpy import save_file

    directory.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    tensors = {spec.name: rng.normal(size=spec.shape).astype(dtype) for spec in tensor_specs(config)}
    (directory / "config.json").write_text(json.dumps(config.to_hf()))
    if shards == 1:
        save_file(tensors, directory / "model.safetensors")
        return tensors
    placed = {name: f"part-{number % shards}.safetensors" for number, name in enumerate(tensors)}
    for shard in set(placed.values()):
        save_file({name: tensors[name] for name in tensors if placed[name] == shard}, directory / shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return tensors


def assert_same_bits(got, want):
    """Of two parameter trees."""

    def compare(one, other):
        one = np.asarray(one)
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.tobytes() == np.ascontiguousarray(other).tobytes()

    jax.tree.map(compare, got, want)


class Counted(Weights):
    """Remembers the last one that was opened."""

    last = None

    def __init__(self, directory):
        super().__init__(directory)
        Counted.last = self


@pytest.mark.parametrize(("family", "mesh"), CASES)
def test_every_device_gets_its_part_bit_by_bit_and_nothing_is_read_twice(family, mesh, tmp_path, monkeypatch):
    config = CONFIGS[family]
    tensors = write(tmp_path / "model", config, ml_dtypes.bfloat16, shards=3)
    _, want = load_model(tmp_path / "model", np.float32)
    for name, tensor in to_hf(config, want):
        assert tensor.tobytes() == tensors[name].astype(np.float32).tobytes()
    monkeypatch.setattr(load, "Weights", Counted)
    # The second time every matrix takes many pieces, cut along rows, and layers take several.
    for piece_bytes in (piecewise.PIECE_BYTES, 8000):
        monkeypatch.setattr(piecewise, "PIECE_BYTES", piece_bytes)
        if piece_bytes == 8000:
            monkeypatch.setattr(load, "_READ_BYTES", 700)
            monkeypatch.setattr(convert, "TILE", 5)
        told = []
        layout = shardings(config, MESHES[mesh])
        with jax.set_mesh(layout["norm"]["scale"].mesh):  # as training does
            got = load_params(tmp_path / "model", config, layout, on_advance=told.append)
        assert_same_bits(got, want)
        jax.tree.map(lambda leaf, sharding: pytest.fail("elsewhere") if leaf.sharding != sharding else 0, got, layout)
        assert Counted.last.bytes_read == sum(tensor.nbytes for tensor in tensors.values())
        assert sum(told) == len(tensors)
        assert min(told) > 0


@pytest.mark.parametrize("family", CONFIGS)
def test_any_part_of_any_parameter_can_be_read(family, tmp_path, monkeypatch):
    config = CONFIGS[family]
    tensors = write(tmp_path / "model", config)
    _, want = load_model(tmp_path / "model")
    assert all(tensor.tobytes() == tensors[name].tobytes() for name, tensor in to_hf(config, want))
    monkeypatch.setattr(load, "_READ_BYTES", 700)
    monkeypatch.setattr(convert, "TILE", 5)
    rng = np.random.default_rng(1)
    with Weights(tmp_path / "model") as weights:
        for path, specs in load._by_param(config).items():
            whole = find(want, path)
            everything = [(0, size) for size in specs[0].inner_shape]
            one = [[(0, size)] for size in specs[0].shape]  # in one piece
            assert specs[0].hf_ranges(everything) == (one[0], one[1] if len(one) == 2 else None)
            for _ in range(20):
                starts = [int(rng.integers(size)) for size in whole.shape]
                index = tuple(
                    (start, int(rng.integers(start, size)) + 1) for start, size in zip(starts, whole.shape, strict=True)
                )
                part = load._read(weights, specs, index, np.dtype(np.float32), None)
                np.testing.assert_array_equal(part, whole[tuple(slice(*ends) for ends in index)])


@pytest.mark.parametrize("stored", ["F64", "F32", "F16", "BF16"])
def test_numbers_are_converted_as_numpy_converts_them(stored, tmp_path):
    dtype = load.FLOATS[stored]
    config = CONFIGS["llama"]
    tensors = write(tmp_path / "model", config, dtype)
    # What a conversion may trip over: subnormals of each type, infinities, the largest, ties between two neighbours.
    odd = np.array([2.0**-149, 2.0**-130, 6e-8, -0.0, np.inf, -np.inf, 65504.0, 1 + 2**-8, 1 + 3 * 2**-8, 2.0**-1074])
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][:10, 0] = tensors[name][20, :10] = odd.astype(dtype)
    from safetensors.numpy import save_file

    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with Weights(tmp_path / "model") as weights:
        for name, tensor in tensors.items():
            assert weights.read_rows(name, (0, len(tensor))).tobytes() == tensor.tobytes()
            assert weights[name].dtype == stored
    for target in (np.float32, ml_dtypes.bfloat16, np.float16):
        with np.errstate(over="ignore"):
            got = load_params(tmp_path / "model", config, shardings(config, None), target)
            assert_same_bits(got, load_model(tmp_path / "model", target)[1])
            up = tensors["model.layers.1.mlp.up_proj.weight"].astype(target)
        assert np.asarray(got["layers"]["mlp"]["up"]["kernel"])[1].tobytes() == up.T.tobytes()


def test_float64_stays_float64_where_it_is_switched_on(tmp_path, x64):
    tensors = write(tmp_path / "model", CONFIGS["llama"], np.float64)
    got = load_params(tmp_path / "model", CONFIGS["llama"], shardings(CONFIGS["llama"], None), np.float64)
    assert np.asarray(got["norm"]["scale"]).tobytes() == tensors["model.norm.weight"].tobytes()


def test_pieces_are_written_in_place():
    sharding = find(shardings(CONFIGS["llama"], dict(fsdp=8)), ("embed", "embedding"))
    array = piecewise._zeros((64, 32), np.dtype(np.float32), sharding)
    where = [shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards]
    piece = jax.device_put(np.ones((2, 32), np.float32), sharding)
    after = piecewise._writer(sharding)(array, piece, np.asarray([4, 0], np.int32))
    assert array.is_deleted()
    assert [shard.data.unsafe_buffer_pointer() for shard in after.addressable_shards] == where
    expected = np.zeros((64, 32))
    expected[4:6] = 1
    np.testing.assert_array_equal(after, expected)


@pytest.mark.parametrize("piece_bytes", [52, 300])
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(
    "split", [(None, "fsdp", "tensor"), ("fsdp", "tensor", None), (("tensor", "fsdp"), None, None)]
)
def test_any_array_is_read_once_however_it_is_cut(split, mesh, piece_bytes, monkeypatch):
    layout = make_mesh(MESHES[mesh]) if MESHES[mesh] else make_mesh({}, jax.devices()[:1])
    sharding = NamedSharding(layout, PartitionSpec(*split))
    array = np.arange(8 * 16 * 2, dtype=np.int16).reshape(8, 16, 2)
    monkeypatch.setattr(piecewise, "PIECE_BYTES", piece_bytes)
    times, reads = np.zeros(array.shape, int), []

    def read(index):
        part = tuple(slice(*ends) for ends in index)
        times[part] += 1
        reads.append(array[part].size)
        return array[part]

    shares = []
    got = piecewise.sharded_array(array.shape, array.dtype, sharding, read, rows=(0, 2), on_piece=shares.append)
    assert got.sharding == sharding
    np.testing.assert_array_equal(got, array)
    assert (times == 1).all()
    assert shares == sorted(shares)
    assert shares[-1] == 1
    devices = len(sharding.addressable_devices)
    assert max(reads) * 2 <= max(piece_bytes, 2 * devices)
    if split[1] == "fsdp" and split[0] is None and mesh == "columns" and piece_bytes >= 300:
        assert len(reads) == len(shares)  # the columns of eight devices, at a stretch


def test_bytes_are_counted_as_the_system_counts_them(tmp_path):
    counter = Path("/proc/self/io")
    if not counter.exists():
        pytest.skip("/proc/self/io is Linux's")

    def system() -> int:
        return int(counter.read_text().split()[1])  # rchar

    tensors = write(tmp_path / "model", CONFIGS["llama"])
    name = "model.embed_tokens.weight"
    with Weights(tmp_path / "model") as weights:
        cost = -system() + system()  # of asking
        before = system()
        part = weights.read_rows(name, (5, 37), (3, 11))
        assert system() - before - cost == weights.bytes_read == 32 * 8 * 4
    np.testing.assert_array_equal(part, tensors[name][5:37, 3:11])


# ---- the vocabulary


def grown(config: LlamaConfig, plan: VocabularyPlan, multiple: int) -> LlamaConfig:
    return dataclasses.replace(config, vocab_size=plan.new_size, vocab_multiple=multiple)


@pytest.mark.parametrize(
    ("family", "mesh", "new_size"),
    [*((*case, 66) for case in CASES), ("llama", "both", 60), ("qwen2, tied", "columns", 60)],
)
def test_tables_follow_the_vocabulary(family, mesh, new_size, tmp_path, monkeypatch):
    config = CONFIGS[family]
    tensors = write(tmp_path / "model", config, ml_dtypes.bfloat16)
    plan = VocabularyPlan(new_size - 3, new_size, {new_size - 2: (5, 3, 3), new_size - 1: (50,), 7: (1, 2)})
    if new_size > 64:
        plan = dataclasses.replace(plan, means={**plan.means, 64: (0, 1, 2, 3, 4)}, old_size=64)
    _, want = load_model(tmp_path / "model", np.float32)
    config = grown(config, plan, 16)
    monkeypatch.setattr(piecewise, "PIECE_BYTES", 8000)
    got = load_params(tmp_path / "model", config, shardings(config, MESHES[mesh]), vocabulary=plan)
    names = {"embed": "model.embed_tokens.weight", "head": "lm_head.weight"}
    for key in ("embed",) if config.tie_embeddings else ("embed", "head"):
        stored = tensors[names[key]].astype(np.float32)
        table = np.asarray(jax.tree.leaves(got.pop(key))[0])
        want.pop(key)
        table = table.T if key == "head" else table
        assert table.shape == (config.table_size, 32)
        assert table.shape[0] % 16 == 0
        assert not table[new_size:].any()
        for token in range(new_size):
            if token in plan.means:
                expected = np.mean([stored[piece] for piece in plan.means[token]], axis=0)
                np.testing.assert_allclose(table[token], expected, rtol=1e-6)
            else:
                assert table[token].tobytes() == stored[token].tobytes()
    assert_same_bits(got, want)


@pytest.mark.parametrize(("base", "model"), [("base_llama", "model_llama"), ("base_llama_rope4", "model_llama_rope4")])
def test_the_reference_makes_the_same_tables(golden, base, model):
    tokenizer, plan = add_block_tokens(load_tokenizer(golden / base))
    assert load_config(golden / base).vocab_size == {"base_llama": 600, "base_llama_rope4": 640}[base]
    assert plan.new_size == 607
    assert tokenizer.get_vocab() == load_tokenizer(golden / model).get_vocab()
    config = grown(load_config(golden / base), plan, 1)
    got = load_params(golden / base, config, shardings(config, dict(fsdp=4, data=2)), vocabulary=plan)
    assert_same_bits(got, load_model(golden / model)[1])
    # And once more: the tokens are there now, so nothing is made anew.
    again, none = add_block_tokens(tokenizer)
    assert none == VocabularyPlan(607, 607, {})
    assert again.get_vocab() == tokenizer.get_vocab()
    config = load_config(golden / model)
    assert_same_bits(load_params(golden / model, config, shardings(config, None), vocabulary=none), got)


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path):
    config = CONFIGS["llama"]
    write(tmp_path / "model", config)
    large = VocabularyPlan(65, 72, dict.fromkeys(range(65, 72), (1,)))
    with pytest.raises(
        ModelLoadError,
        match=r"the tokenizer has 65 tokens, but the embedding of .*model only 64 rows; use the tokenizer",
    ):
        load_params(tmp_path / "model", grown(config, large, 8), shardings(config, None), vocabulary=large)
    with pytest.raises(ValueError, match=r"config.vocab_size is 70, but the tables get 64 rows"):
        load_params(tmp_path / "model", dataclasses.replace(config, vocab_size=70), shardings(config, None))


# ---- several processes

WORKER = """
import json, sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
number, port, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize("localhost:" + port, 2, number)
import numpy as np
from rcjax.hf import convert, load, piecewise
from rcjax.hf.vocabulary import VocabularyPlan
from tests.hf.test_load import Counted, grown, shardings
load.Weights = Counted
read = {}
for name, mesh, piece_bytes in (
    ("split", dict(tensor=2, fsdp=4), 4000), ("replicated", dict(data=8), 2**20),
):
    piecewise.PIECE_BYTES = piece_bytes
    plan = VocabularyPlan(62, 66, {62: (1, 2), 63: (1,), 64: (3, 4, 5), 65: (0, 61)})
    config = grown(load.load_config(directory), plan, 8)
    params = load.load_params(directory, config, shardings(config, mesh), vocabulary=plan)
    read[name] = Counted.last.bytes_read
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        for shard in leaf.addressable_shards:
            key = jax.tree_util.keystr(path, simple=True, separator="/")
            where = ",".join(f"{part.start or 0}:{part.stop or size}" for part, size in zip(shard.index, leaf.shape))
            np.save(f"{directory}/{name}.{number}.{key.replace('/', '-')}.{where}.npy", np.asarray(shard.data))
print(json.dumps(read))
"""


def test_processes_read_their_parts_alone(tmp_path):
    config = CONFIGS["qwen3"]
    directory = tmp_path / "model"
    tensors = write(directory, config, ml_dtypes.bfloat16, shards=2)
    port = str(free_port())
    environment = {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
        "PATH": "",
        "HOME": str(tmp_path),
    }
    commands = [[sys.executable, "-c", WORKER, str(number), port, str(directory)] for number in range(2)]
    read = []
    for code, out, error in ended(start(commands, [environment] * 2)):
        assert code == 0, error
        read.append(json.loads(out.splitlines()[-1]))
    plan = VocabularyPlan(62, 66, {62: (1, 2), 63: (1,), 64: (3, 4, 5), 65: (0, 61)})
    config = grown(config, plan, 8)
    want = load_params(directory, config, shardings(config, None), vocabulary=plan)
    for name in ("split", "replicated"):
        seen = [0, 0]
        for number in range(2):
            for path in directory.glob(f"{name}.{number}.*.npy"):
                key, where = path.name.split(".")[2:4]
                leaf = np.asarray(find(want, tuple(key.split("-"))))
                index = tuple(slice(*map(int, part.split(":"))) for part in where.split(","))
                part = np.load(path)
                assert part.tobytes() == np.ascontiguousarray(leaf[index]).tobytes(), path.name
                seen[number] += part.size
        assert seen[0] == seen[1] >= sum(leaf.size for leaf in jax.tree.leaves(want)) / 2
    everything = sum(tensor.nbytes for tensor in tensors.values())
    everything += 2 * 8 * 32 * 2  # means: in two tables, of eight rows, of 32 numbers of two bytes
    # That mesh lays every matrix and the output's bias on two processes, and the other vectors on each.
    twice = sum(tensor.nbytes for name, tensor in tensors.items() if tensor.ndim == 1 and "o_proj" not in name)
    half = (everything + twice) // 2
    assert read == [{"split": half, "replicated": everything}] * 2


# ---- what is not whole


@pytest.fixture
def model(tmp_path):
    """A checkpoint that a test may damage: directory, config, tensors."""
    tensors = write(tmp_path / "model", CONFIGS["llama"])
    return tmp_path / "model", CONFIGS["llama"], tensors


@pytest.fixture
def shards(tmp_path):
    """The same in three files."""
    tensors = write(tmp_path / "model", CONFIGS["llama"], shards=3)
    return tmp_path / "model", CONFIGS["llama"], tensors


def rewrite(directory: Path, tensors: dict) -> None:
    from safetensors.numpy import save_file

    save_file(tensors, directory / "model.safetensors")


def refused(directory: Path, config: LlamaConfig, match: str) -> None:
    """All three readers refuse it, in the same sentence."""
    said = set()
    for read in (
        lambda: check_tensors(directory, config),
        lambda: load_model(directory),
        lambda: load_params(directory, config, shardings(config, None)),
    ):
        with pytest.raises(ModelLoadError, match=match) as caught:
            read()
        assert "\n" not in str(caught.value)
        said.add(str(caught.value))
    assert len(said) == 1


def test_a_missing_shard_is_named(shards):
    directory, config, _ = shards
    (directory / "part-1.safetensors").unlink()
    refused(
        directory, config, r"part-1\.safetensors does not exist, but model\.safetensors\.index\.json names it; complete"
    )
    (directory / "part-2.safetensors").unlink()
    refused(directory, config, r"part-1\.safetensors does not exist \(nor do 1 others of 3\), but")


def test_a_shard_that_lacks_a_tensor_and_a_bad_index_are_named(shards):
    directory, config, tensors = shards
    (directory / "part-0.safetensors").write_bytes((directory / "part-1.safetensors").read_bytes())
    first = next(iter(tensors))
    refused(directory, config, rf"part-0\.safetensors lacks tensor {first}, which model.* places there; copy it again")
    index = directory / "model.safetensors.index.json"
    for text, problem in (
        ("{}", "field weight_map is missing; copy the file again"),
        ('{"weight_map": {"a": 3}}', "field weight_map is missing"),
        ('{"weight_map": {"a": "../part-1.safetensors"}}', r"names '\.\./part-1\.safetensors', which is not a file of"),
        ('{"weight_map": {', "can not be read as JSON"),
        ("[]", "holds no JSON object"),
    ):
        index.write_text(text)
        refused(directory, config, rf"index\.json.*{problem}")


def test_a_file_that_is_cut_short_is_named_wherever_it_ends(model):
    directory, config, _ = model
    path = directory / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    ends = [0, 5, 8, header // 2, header, header + 1, len(whole) // 2, len(whole) - 1]
    for content in [whole[:end] for end in ends] + [whole + b"x", b"<html>" * 1000, b"version https://git-lfs"]:
        path.write_bytes(content)
        refused(directory, config, r"model\.safetensors is no whole safetensors file \(.*\); copy it again$")
    for header in ("[]", '{"a": 3}', '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', "\xff"):
        path.write_bytes(len(header).to_bytes(8, "little") + header.encode("latin-1") + bytes(4))
        refused(directory, config, r"is no whole safetensors file \(its header .*\); copy it again$")
    header = '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(4))
    refused(directory, config, r"\(tensor a of shape \[2\] has 4 bytes\)")


def test_missing_and_unexpected_tensors_are_listed_ten_at_most(model):
    directory, config, tensors = model
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(directory, {key: tensor for key, tensor in tensors.items() if key != name})
    refused(directory, config, rf"model lacks tensor {name}; its config\.json belongs to another checkpoint or the dow")
    rewrite(directory, {**tensors, "extra": np.zeros(1)})
    refused(directory, config, r"model has unexpected tensor extra; its config\.json belongs")
    rewrite(directory, {f"transformer.{key}": tensor for key, tensor in tensors.items()})
    names = list(tensors)
    count = len(names) - 10
    refused(
        directory,
        config,
        rf"lacks tensors {', '.join(names[:10])} and {count} more and has unexpected tensors transformer\."
        rf"(?!.*{names[10]}).* and {count} more; ",
    )
    rewrite(directory, {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)})
    check_tensors(directory, config)  # left over in old checkpoints
    check_tensors(directory, dataclasses.replace(config, tie_embeddings=True))  # the head stored beside a tied table


def test_another_shape_is_named(model):
    directory, config, tensors = model
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(directory, {**tensors, name: np.zeros((3, 5), np.float32)})
    refused(
        directory,
        config,
        rf"model\.safetensors: tensor {name} has shape \[3, 5\], but config\.json asks for \[48, 32\]; its config",
    )


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, ml_dtypes.float8_e4m3fn])
def test_quantised_weights_are_refused(model, dtype):
    directory, config, tensors = model
    name = "model.layers.1.mlp.up_proj.weight"
    packed = {**tensors, name: tensors[name].astype(dtype), f"{name}_scale": np.ones(1, np.float32)}
    rewrite(directory, packed)
    refused(
        directory,
        config,
        rf"tensor {name} has type [A-Z0-9_]+; quantised weights are not supported, use a checkpoint in F64",
    )
    raw = {**config.to_hf(), "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (directory / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelConfigError, match=r"config\.json: quantization_config is \{'quant_method': 'gptq'"):
        load_model(directory)


def test_other_architectures_and_missing_configs_are_refused(model):
    directory, config, _ = model
    (directory / "config.json").write_text(json.dumps({**config.to_hf(), "model_type": "gpt_neox"}))
    with pytest.raises(
        ModelConfigError, match=r"model_type is 'gpt_neox'; supported are 'llama', 'mistral', 'qwen2', 'qwen3'"
    ):
        load_model(directory)
    (directory / "config.json").unlink()
    refused_config = r"config\.json does not exist; give the directory of a Hugging Face model"
    with pytest.raises(ModelLoadError, match=refused_config):
        load_params(directory, config, shardings(config, None))


def test_weights_in_other_forms_are_refused_with_the_mend(model):
    directory, config, _ = model
    (directory / "model.safetensors").unlink()
    neither = r"has neither model\.safetensors nor model\.safetensors\.index\.json; "
    refused(directory, config, neither + "give the directory of a Hugging Face model")
    (directory / "model-00001-of-00002.safetensors").write_bytes(b"")
    refused(
        directory,
        config,
        neither + r"model-00001-of-00002\.safetensors needs model\.safetensors\.index\.json beside it",
    )
    (directory / "pytorch_model-00001-of-00002.bin").write_bytes(b"")
    refused(
        directory,
        config,
        neither + r"pytorch_model-00001-of-00002\.bin is a pickle, which is not read: save the model again with "
        r"save_pretrained\(\.\.\., safe_serialization=True\), or convert it at https://huggingface\.co/spaces",
    )
