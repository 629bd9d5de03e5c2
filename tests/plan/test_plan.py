"""``--mode=plan`` as a user types it, its figures against what follows from shapes, and what a user can get wrong."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs import tiny
from rcjax.plan import programs, search
from rcjax.plan.command import plan
from rcjax.plan.estimate import held_bytes
from rcjax.plan.programs import compile_accumulate, out_of_memory, prepare_setting
from rcjax.plan.topology import TopologyError, parse, prepare
from rcjax.train.executables import ExecutableError, load, origin, save
from tests.conftest import QUICK_TO_COMPILE

ROOT = Path(__file__).resolve().parent.parent.parent
SHAPE = dict(
    vocab_size=300, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8
)
SMALL = {f"model.{name}": value for name, value in SHAPE.items()} | {
    "model.vocab_multiple": 128,
    "data.max_length": 65,
    "packing.row_length": 128,
    "packing.cuts": 2,
    "train.batch_size": 16,
    "objective.chunk": 32,
}
needs_devices = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices")
needs_tpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install libtpu==0.0.42.1"
)


def config(**changes):
    made = tiny.get_config()
    made.update_from_flattened_dict(SMALL | changes)
    return made


def launch(*arguments, **fields):
    flags = [f"--config.{name}={value}" for name, value in (SMALL | fields).items() if value is not None]
    return subprocess.run(
        [sys.executable, "launch.py", "--config=configs/tiny.py", "--mode=plan", *flags, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": QUICK_TO_COMPILE, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def parameters(fsdp, tensor):
    """Of a device: the table and every matrix split both ways, norms whole."""
    table, layer = 384 * 32, 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64
    return (table + 2 * layer) / fsdp / tensor + (2 * 2 + 1) * 32


def test_what_each_device_holds_and_sends_follows_from_shapes(tmp_path):
    """Parameters whole on every device: gradients are added up once a step, and nothing else is sent."""
    done = launch("--topology=cpu:8", "--effort=fast", f"--output={tmp_path / 'plan.json'}")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "plan.json").read_text())
    held = 4 * parameters(1, 1)
    assert figures["held_bytes"] == {
        "parameters": held,
        "gradients": held + 3 * 4,  # loss, ce, kl
        "optimizer": 2 * held + 2 * 4,  # steps counted twice
    }
    assert figures["sent_bytes_per_microbatch"] == {"all-reduce": 0}
    assert figures["sent_bytes_per_step"] == {"all-reduce": pytest.approx(2 * 7 / 8 * (held + 3 * 4))}
    assert (figures["microbatches"], figures["tokens_per_step"]) == (2, 16 * 2 * 64)
    assert figures["peak_bytes"] > sum(figures["held_bytes"].values())
    assert figures["fits"] is None
    assert "no verdict: cpu:8 has no memory of its own" in done.stdout
    assert "16 examples of 2 x 64 slots, 2,048 tokens in 2 microbatches" in done.stdout
    assert not done.stderr


@needs_devices
@pytest.mark.parametrize("teacher", ["self", "ema", "frozen"])
def test_what_lies_beside_is_counted(teacher):
    setting = prepare_setting(config(**{"teacher.name": teacher, "mesh.fsdp": 2, "mesh.tensor": 2}), parse("cpu:8"))
    held, own = held_bytes(setting), 4 * parameters(2, 2)
    assert (held["parameters"], held["optimizer"]) == (own, 2 * own + 8)
    assert held.get("moving average") == (own if teacher == "ema" else None)
    assert held.get("teacher") == (own / 2 if teacher == "frozen" else None)  # in bfloat16
    if teacher != "frozen":
        return
    compiled = compile_accumulate(setting)
    assert compiled.beside == held["optimizer"]
    batch = sum(leaf.size * 4 for leaf in setting.microbatch().values()) / 4
    assert compiled.arguments == sum(held.values()) - held["optimizer"] + batch


@needs_devices
def test_the_widths_are_those_that_batches_have():
    own = prepare_setting(config(), parse("cpu:8"))
    assert own.widths() == [128, 64]
    assert {name: leaf.shape for name, leaf in own.microbatch(64).items()}["pair_targets"] == (8, 32)
    other = prepare_setting(config(**{"teacher.name": "ema"}), parse("cpu:8"))
    assert other.widths() == [128, 64, 0]
    assert other.microbatch(64)["teacher_tokens"].shape == (8, 64)
    assert other.microbatch(64)["tokens"].shape == (8, 128)
    assert "teacher_tokens" not in other.microbatch(0)


def test_stored_programs_train_as_compiled_ones_do(tmp_path):
    """One process trains, a second compiles for devices like its, a third trains with that."""
    from tests.test_launch import SMALL as DATA
    from tests.test_launch import launch as train
    from tests.test_launch import metrics

    fields = [field for field in DATA if not field.startswith(("train.steps", "checkpoint", "build.problems"))]
    fields += ["train.steps=2", "packing.cuts=1", "build.problems=30"]
    train(f"--workdir={tmp_path / 'first'}", "--mode=train", fields=fields)
    vocabulary = json.loads((tmp_path / "first" / "model.json").read_text())["vocab_size"]
    stored = tmp_path / "programs"
    planned = [*fields, f"model.vocab_size={vocabulary}"]
    train("--mode=plan", "--topology=cpu:1", f"--save={stored}", fields=planned)
    fields += [f"data.train={tmp_path / 'first' / 'data'}"]
    train(f"--workdir={tmp_path / 'second'}", "--mode=train", f"--executable={stored}", fields=fields)
    assert metrics(tmp_path / "second") == metrics(tmp_path / "first")


@needs_devices
def test_stored_programs_of_something_else_are_refused(tmp_path):
    setting = prepare_setting(config(), parse("cpu:8"))
    with pytest.raises(ExecutableError, match=r"holds no manifest\.json; write it with --mode=plan --save=DIR"):
        load(tmp_path / "absent", setting.config, setting.program, 10)
    save(tmp_path / "programs", origin(setting.config, setting.program, 10), {})
    with pytest.raises(ExecutableError, match="exists already"):
        save(tmp_path / "programs", {}, {})
    with pytest.raises(ExecutableError, match="holds no program zeros"):
        load(tmp_path / "programs", setting.config, setting.program, 10)
    with pytest.raises(ExecutableError, match="made with optimizer steps 10, but this run has 11"):
        load(tmp_path / "programs", setting.config, setting.program, 11)
    for change, field in (
        ({"mesh.fsdp": 2}, "config.mesh.data 8, but this run has 4"),
        ({"model.num_layers": 3}, "model.num_layers 2, but this run has 3"),
        ({"train.remat": "full"}, "config.train.remat 'none', but this run has 'full'; plan again with --save"),
        ({"packing.row_length": 256}, "config.packing.row_length 128, but this run has 256"),
    ):
        other = prepare_setting(config(**change), parse("cpu:8"))
        with pytest.raises(ExecutableError, match=field):
            load(tmp_path / "programs", other.config, other.program, 10)
    free = prepare_setting(config(**{"data.prefetch": 9, "seed": 1, "train.epochs": 9.0}), parse("cpu:8"))
    assert origin(free.config, free.program, 10) == origin(setting.config, setting.program, 10)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("v7:4x4", r"--topology=v7:4x4: unknown chip 'v7'; known are v4, v5e, .*, e\.g\. v5e:4x4"),
        ("v5e", r"--topology=v5e: expected v5e:DEVICES or v5e:AxB"),
        ("v5e:4xfour", r"expected v5e:DEVICES or v5e:AxB"),
        ("h100:2x4", r"give the number of devices alone, h100:8"),
        ("h100:12", r"hosts have 8 GPUs each; give a multiple of it"),
    ],
)
def test_a_topology_that_makes_no_sense_is_refused(name, sentence):
    with pytest.raises(TopologyError, match=sentence):
        parse(name)


@needs_devices
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"model.vocab_size": None},
            r"config\.model\.vocab_size is not set; .* give it with --config\.model\.vocab_size=N",
        ),
        ({"model.num_heads": None}, r"config\.model\.num_heads is not set"),
        ({"mesh.fsdp": 3}, r"config\.mesh: fsdp=3 makes 3, which does not divide 8 devices; nearest meshes that do: "),
        ({"mesh.tensor": 4}, r"config\.mesh: .*num_kv_heads|config\.mesh: dimension .* has size 2"),
        ({"train.remat": "some"}, r"config\.train\.remat is 'some'"),
        ({"data.max_length": 66}, r"row_length is 128.*config\.data\.max_length=66 tokens can take 130 slots"),
    ],
)
def test_a_config_that_can_not_be_planned_is_refused(change, sentence):
    from rcjax.plan.estimate import make_plan

    with pytest.raises(ValueError, match=sentence):
        make_plan(prepare_setting(config(**change), parse("cpu:8")))


def test_flags_that_do_not_go_together_are_refused(tmp_path):
    topology = parse("cpu:8")
    with pytest.raises(programs.PlanError, match="--search compares times, and nothing is known of the time of cpu:8"):
        plan(config(), "tiny", topology, searched=True)
    with pytest.raises(programs.PlanError, match="exists already; name a directory that does not"):
        plan(config(), "tiny", topology, directory=str(tmp_path))
    with pytest.raises(
        programs.PlanError, match=r"--save needs the number of optimizer steps.*--config\.train\.steps=N"
    ):
        plan(config(), "tiny", topology, directory=str(tmp_path / "new"))
    done = launch("--topology=cpu:8", **{"model.vocab_size": None})
    assert done.returncode == 2
    assert done.stderr.startswith("PlanError: config.model.vocab_size is not set")
    assert "Traceback" not in done.stderr


def test_what_the_compiler_says_of_memory_is_the_verdict():
    """Its words, as they came for four rows of configs/ds67b.py on v5e:4x4."""
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (18.66G) exceeds "
        "available HBM (15.75G).\nmore"
    )
    sentence, wanted = out_of_memory(message)
    assert sentence.startswith("Ran out of memory on HBM")
    assert "more" not in sentence
    assert wanted == 18.66 * 2**30
    assert out_of_memory("INVALID_ARGUMENT: something else (3G)") == ("", 0.0)


@needs_devices
def test_bounds_of_a_search_order_its_candidates():
    made = {}
    for remat in search.REMATS:
        candidate = search.Candidate(2, remat, (("data", 4), ("fsdp", 2)))
        applied = candidate.applied(config())
        assert (applied.mesh.fsdp, applied.packing.rows_per_device, applied.train.remat) == (2, 2, remat)
        made[remat] = search.least_memory(prepare_setting(applied, parse("cpu:8")))
    assert made["none"] > made["dots"] > made["full"]
    assert candidate.flags() == [
        "--config.packing.rows_per_device=2",
        "--config.train.remat=full",
        "--config.mesh.data=4",
        "--config.mesh.fsdp=2",
    ]
    sizes = [dict(mesh) for mesh in search.meshes(16, "tpu")]
    assert {"replica": 1, "data": 1, "fsdp": 16, "tensor": 1} in sizes
    assert {"replica": 1, "data": 4, "fsdp": 1, "tensor": 4} in sizes
    assert all(size["data"] * size["fsdp"] * size["tensor"] == 16 for size in sizes)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="the TPU compiler is installed")
def test_an_absent_compiler_is_named_with_its_mend():
    with pytest.raises(
        TopologyError, match=r"--topology=v5e:4x4 needs .* not installed: pip install libtpu==0\.0\.42\.1"
    ):
        prepare(parse("v5e:4x4"))


@needs_tpu_compiler
def test_on_a_tpu_groups_exchange_sums_once_a_step_too():
    """In a process of its own, since the compiler is made ready before JAX starts."""
    program = """
import sys
from rcjax.plan.topology import parse, prepare
topology = parse("v5e:2x4")
prepare(topology)
from rcjax.plan.programs import compile_accumulate, compile_update, prepare_setting
from tests.plan.test_plan import config
large = {"model.hidden_size": 256, "model.intermediate_size": 512, "model.head_dim": 128, "packing.row_length": 512}
setting = prepare_setting(config(**large, **{"sharding.preset": "hybrid", "mesh.replica": 2}), topology)
half = topology.size // 2  # devices of a group
for program in (compile_accumulate(setting), compile_update(setting)):
    print(sum(c.total for c in program.collectives if len({member // half for member in c.members}) > 1))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    accumulate, update = map(float, done.stdout.split()[-2:])
    assert accumulate == 0
    assert update > 100_000


@needs_tpu_compiler
def test_a_tpu_that_is_not_there(tmp_path):
    """The verdict, an estimate that is consistent with itself, and programs that can be stored."""
    shape = {"model.hidden_size": 256, "model.intermediate_size": 512, "model.head_dim": 128, "data.max_length": 257}
    shape |= {
        "packing.cuts": 1,
        "packing.row_length": 512,
        "train.compute_dtype": "bfloat16",
        "mesh.data": 1,
        "mesh.fsdp": -1,
    }
    output, stored = tmp_path / "plan.json", tmp_path / "programs"
    flags = ("--topology=v5e:2x4", f"--output={output}", f"--save={stored}")
    done = launch(*flags, **shape, **{"train.steps": 3})
    assert done.returncode == 0, done.stderr
    figures = json.loads(output.read_text())
    assert figures["fits"]
    assert figures["held_bytes"]["parameters"] < figures["peak_bytes"] < figures["hbm_bytes"] == 15.75 * 2**30
    peak = 197e12 * 8
    assert figures["utilisation"] == pytest.approx(figures["model_flops_per_step"] / figures["step_seconds"] / peak)
    assert (stored / "accumulate-512-0").stat().st_size > 10_000
    assert json.loads((stored / "manifest.json").read_text())["device kind"] == "TPU v5 lite"
    done = launch("--topology=v5e:2x4", **shape, **{"packing.rows_per_device": 8192})
    assert done.returncode == 0, done.stderr
    assert "does not fit: Ran out of memory on HBM" in done.stdout
    done = launch("--topology=v5e:3x5", **shape)
    assert done.returncode == 2
    assert "--topology=v5e:3x5: the compiler knows no such topology" in done.stderr
