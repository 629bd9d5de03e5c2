"""rcjax: from reflection traces to a code LLM that writes the right program in one go.

    python launch.py --config=configs/tiny.py --workdir=runs/tiny

Modes (--mode=NAME):

  pipeline   every stage in order, each skipped when its output is already in the workdir:
             build data, train a tokenizer, train, evaluate, export, report. The default.
  train      the data, tokenizer and train stages alone.
  evaluate   greedy one-off generation of a workdir's newest checkpoint on the held-out problems, run against
             their tests; prints pass@1 and writes WORKDIR/evaluation. With --benchmarks=humaneval+,mbpp+ the same of
             any model, --model=DIR_OR_HUB_ID_OR_WORKDIR, on benchmarks: scores with intervals, the failures and a
             report.html beside published rows in --output=DIR. --data=humaneval+=FILE,mbpp+=FILE names their files;
             --rounds=N adds N - 1 rounds with real feedback; --compare=DIR tests the difference to another --output.
  export     a workdir's checkpoint as a Hugging Face directory: --output=DIR (default WORKDIR/export), --step=N
             (default the newest), --weights=ema, --dtype=bfloat16, --max_shard_size=5GB. It is read again and compared
             before it gets its name.
  generate   a prompt or a file in, code out: --prompt="Write ..." or --prompt_file=FILE (one prompt a line), from
             --model=DIR_OR_HUB_ID (an export) or --workdir=W (its export). Greedy; with --temperature=T drawn
             ([--top_p=P] [--top_k=K] [--seed=S]), --num_samples=N programs a prompt.
  ablate     many runs of one config, each with a little changed, several seeds of each, and a table of what came of
             them: --config=configs/ablations.py:tiny --workdir=W [--seeds=5] [--rows=paper,curricula,ROW]. Started in
             several shells at once, each takes runs that no other is at.
  score      verdicts on samples that others produced, as evalplus gives them: --benchmark=humaneval+ --samples=FILE
             --data=FILE [--output=DIR]. Samples are JSON lines with `task_id` and `solution` or `completion`; they and
             the data may be gzipped. Prints pass@1 of base and plus tests (pass@k where there are several samples) and
             writes DIR/results.json. --allow_partial takes samples of a part of the tasks. Benchmarks: humaneval,
             humaneval+, mbpp, mbpp+; those without + need no --data where there is a network.
  plan       what training a config needs, on chips that need not be there: --topology=v5p:4x4x4 (v4, v5e, v5p, v6e:AxB;
             h100:N; cpu:N) compiles the real step with their compiler and prints, for each device, memory against what
             there is, bytes sent, FLOPs, an estimate of time, and whether it fits (docs/plans.md). --effort=fast in a
             tenth of the time, --search for the quickest rows x remat x mesh that fits, --output=FILE for the figures
             as JSON. --save=DIR keeps the compiled programs, which --mode=train --executable=DIR runs.
  inspect    what a checkpoint is, --model=DIR_OR_HUB_ID: family, parameters, memory, vocabulary, rope, the config that
             fits, and what would be refused.

Training starts from any Llama-family checkpoint with --config.model.init=DIR_OR_HUB_ID. A workdir remembers its config:
--config may be left out in it.

Several processes, each on a host of its own or with devices of its own, train, evaluate and export as one run when
the same command is given on all: with --distributed under SLURM, Open MPI, Kubernetes or on a TPU pod, elsewhere with
--coordinator=HOST:PORT --num_processes=N --process_id=I. They need a --workdir that all share; docs/launching.md.

A run that was stopped, however hard, goes on where it was when the same command is given again. Told to stop by
SIGTERM, training finishes its step, saves, and ends with exit code 75, on which schedulers start it again.

Any field of the config can be overridden: --config.optimizer.learning_rate=1e-4. `configs/base.py` lists every
field with its meaning; `python -m data_gen --help` tells how to build traces from your own problems.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from rcjax.compilation_cache import keep_compiled_programs
from rcjax.host_devices import one_device_per_core
from rcjax.host_memory import ask_for_huge_pages

_BASE_CONFIG = str(Path(__file__).resolve().parent / "configs" / "base.py")
MODES = ("pipeline", "train", "evaluate", "export", "generate", "ablate", "score", "plan", "inspect")

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The config file, e.g. configs/tiny.py; fields are overridden by --config.FIELD=VALUE."
)
MODE = flags.DEFINE_enum("mode", "pipeline", MODES, "What to do; see above.")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run: data, tokenizer, checkpoints, metrics, report.")
OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Directory that --mode=export writes (it must not exist yet), or --mode=evaluate and score their results; file of "
    "the figures of --mode=plan.",
)
STEP = flags.DEFINE_integer(
    "step", None, "Optimizer steps of the checkpoint that --mode=export takes; default: the newest."
)
DTYPE = flags.DEFINE_enum(
    "dtype", None, ("float32", "bfloat16", "float16"), "Of exported weights; default: config.export.dtype."
)
MAX_SHARD_SIZE = flags.DEFINE_string(
    "max_shard_size", None, "Largest file of an export, e.g. 5GB or 500MB; default: config.export.max_shard_size."
)
WEIGHTS = flags.DEFINE_enum(
    "weights", "student", ("student", "ema"), "What --mode=export takes: the parameters or their moving average."
)
MODEL = flags.DEFINE_string(
    "model", None, "Hugging Face directory or Hub id for --mode=generate, inspect and evaluate (there a workdir, too)."
)
PROMPT = flags.DEFINE_string("prompt", None, "A task in words, for --mode=generate.")
PROMPT_FILE = flags.DEFINE_string("prompt_file", None, "File with one task a line, for --mode=generate.")
MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens",
    None,
    "Longest generation; default: 256 in --mode=generate, 1024 on benchmarks in --mode=evaluate.",
    lower_bound=1,
)
BENCHMARKS = flags.DEFINE_list(
    "benchmarks", [], "Benchmarks of --mode=evaluate, e.g. humaneval+,mbpp+; none: the workdir's held-out problems."
)
TEMPERATURE = flags.DEFINE_float(
    "temperature", 0.0, "Programs are drawn from softmax(logits / temperature); 0: the most likely token."
)
TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw among the fewest most likely tokens with this share of the probability.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Draw among so many most likely tokens; 0: among all.")
SEED = flags.DEFINE_integer("seed", 0, "Of the draws: the same seed draws the same programs.")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "Programs that are drawn for a prompt or task.", lower_bound=1)
ROUNDS = flags.DEFINE_integer(
    "rounds",
    1,
    "Attempts at each task of benchmarks; from the second on with real feedback.",
    lower_bound=1,
)
COMPARE = flags.DEFINE_string("compare", None, "The --output of another evaluation to compare with, task by task.")
PROMPT_FORMAT = flags.DEFINE_enum(
    "prompt_format", None, ("blocks", "chat", "completion"), "How a model is asked; default: by its tokenizer."
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Programs written together; default: config.evaluation.batch_size.", lower_bound=1
)
BENCHMARK = flags.DEFINE_string("benchmark", None, "What --mode=score scores, e.g. humaneval+.")
SAMPLES = flags.DEFINE_string("samples", None, "File of samples for --mode=score.")
DATA = flags.DEFINE_string(
    "data", None, "The benchmark's file; --mode=evaluate takes BENCHMARK=FILE,BENCHMARK=FILE; default: from the Hub."
)
ALLOW_PARTIAL = flags.DEFINE_bool("allow_partial", False, "Let --mode=score take samples of a part of the tasks.")
WORKERS = flags.DEFINE_integer("workers", None, "Programs that --mode=score runs at a time.", lower_bound=1)
EVALPLUS_RULES = flags.DEFINE_enum(
    "evalplus_rules",
    "0.3.1",
    ("0.3.1", "fixed"),
    "For --mode=score: evalplus as released, where no program passes HumanEval/32, or with that mended.",
)

DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Be one of several processes; which, TPU metadata, SLURM, Open MPI or Kubernetes say."
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT where process 0 waits for the others.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes the run has.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", lower_bound=0)
JOIN_TIMEOUT = flags.DEFINE_float(
    "join_timeout", 300.0, "Seconds until processes that do not join end the run.", lower_bound=0.0
)

ROWS = flags.DEFINE_list("rows", ["paper"], "Groups of rows and rows that --mode=ablate runs; see the config file.")
SEEDS = flags.DEFINE_integer("seeds", 5, "Runs of each row of --mode=ablate.", lower_bound=1)
TOPOLOGY = flags.DEFINE_string("topology", None, "Chips that --mode=plan plans for, e.g. v5e:4x4, v5p:4x4x4, h100:8.")
EFFORT = flags.DEFINE_enum(
    "effort", "full", ("full", "fast"), "How well --mode=plan compiles; full is what a run does."
)
SEARCH = flags.DEFINE_bool("search", False, "Let --mode=plan look for the quickest rows, remat and mesh that fit.")
SAVE = flags.DEFINE_string("save", None, "Directory for the programs that --mode=plan compiles; must not exist yet.")
EXECUTABLE = flags.DEFINE_string("executable", None, "Directory of compiled programs, from --save, that training runs.")

SEVERAL = (DISTRIBUTED, COORDINATOR, NUM_PROCESSES, PROCESS_ID, JOIN_TIMEOUT)
# Flags that go with some modes alone.
MODES_OF_FLAGS = (
    ((STEP, WEIGHTS, DTYPE, MAX_SHARD_SIZE), ("export",)),
    ((OUTPUT,), ("export", "evaluate", "score", "plan")),
    ((TOPOLOGY, EFFORT, SEARCH, SAVE), ("plan",)),
    ((EXECUTABLE,), ("train", "pipeline")),
    ((ROWS, SEEDS), ("ablate",)),
    ((MAX_NEW_TOKENS, TEMPERATURE, TOP_P, TOP_K, SEED, NUM_SAMPLES), ("generate", "evaluate")),
    ((BENCHMARKS, ROUNDS, COMPARE, PROMPT_FORMAT, BATCH_SIZE), ("evaluate",)),
    ((DATA,), ("evaluate", "score")),
    (SEVERAL, ("pipeline", "train", "evaluate", "export")),
    ((BENCHMARK, SAMPLES, ALLOW_PARTIAL, WORKERS, EVALPLUS_RULES), ("score",)),
)


class UsageError(ValueError):
    """A flag that is missing or that does not go with the mode."""


def main(argv: list[str]) -> None:
    """Dispatches to the mode; every failure that a user can cause ends in one sentence and exit code 2."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # the libraries' own chatter; --verbosity=0 brings it back
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would miss torch, which is not needed
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; flags begin with --")
    try:
        check_flags()
        if MODE.value != "score":  # which computes nothing itself
            ask_for_huge_pages()
        if not several():
            one_device_per_core()
        if MODE.value == "generate":
            generate()
        elif MODE.value == "score":
            score()
        elif MODE.value == "inspect":
            inspect()
        elif MODE.value == "plan":
            plan()
        elif MODE.value == "evaluate" and on_benchmarks():
            evaluate_on_benchmarks()
        else:
            run()
    except KeyboardInterrupt:
        print("stopped; the same command goes on from what is on the disk", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        if os.environ.get("RCJAX_TRACEBACK"):
            raise
        print(f"{type(error).__name__}: {error}\n(RCJAX_TRACEBACK=1 shows where)", file=sys.stderr)
        sys.exit(2)


def given(flag: flags.FlagHolder) -> bool:
    """Whether a flag stands on the command line."""
    return flags.FLAGS[flag.name].present


def check_flags() -> None:
    """Refuses flags that mean nothing in this mode."""
    for group, modes in MODES_OF_FLAGS:
        for flag in filter(given, group):
            if MODE.value not in modes:
                known = " or ".join(f"--mode={mode}" for mode in modes)
                raise UsageError(f"--{flag.name} belongs to {known}, not to --mode={MODE.value}")


def on_benchmarks() -> bool:
    """Whether --mode=evaluate is to take benchmarks; else it takes the held-out problems of a workdir."""
    groups = [group for group, modes in MODES_OF_FLAGS if "evaluate" in modes and group is not SEVERAL]
    return bool(MODEL.value) or any(given(flag) for group in groups for flag in group)


def several() -> bool:
    """Whether this is one of several processes."""
    return DISTRIBUTED.value or any(flag.value is not None for flag in (COORDINATOR, NUM_PROCESSES, PROCESS_ID))


def run() -> None:
    """The modes that work in a workdir with a config."""
    if not WORKDIR.value:
        raise UsageError(f"--mode={MODE.value} needs --workdir=DIR, e.g. --workdir=runs/tiny")
    config = CONFIG.value or stored_config(WORKDIR.value)
    if MODE.value in ("evaluate", "export") and not os.path.isdir(os.path.join(WORKDIR.value, "checkpoints")):
        raise UsageError(f"--workdir={WORKDIR.value} holds no checkpoint; train first or name another")
    if ("rows" in config) != (MODE.value == "ablate"):
        raise UsageError(
            f"--mode={MODE.value} does not go with this config: --mode=ablate takes configs/ablations.py:BASE, the "
            "other modes any other config, e.g. configs/ablations.py:BASE/ROW"
        )
    if MODE.value == "ablate":
        from rcjax.ablation import ablate, print_table

        print_table(ablate(config, WORKDIR.value, ROWS.value, SEEDS.value))
        return
    if not several():
        until_preempted(config)
        return
    from rcjax.distributed import find_place, one_run

    place = find_place(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    with one_run(place, common_facts(config), JOIN_TIMEOUT.value):
        until_preempted(config)


def common_facts(config) -> dict[str, Any]:
    """What all processes of a run must have in common: flags, config, code and versions."""
    from rcjax.distributed import code_facts
    from rcjax.pipeline import versions
    from rcjax.workdir import flatten

    # Of flags, those that decide what comes out: each process may name directories in its own way.
    facts = {f"--{flag.name}": flag.value for flag in (MODE, STEP, WEIGHTS, DTYPE, MAX_SHARD_SIZE)}
    facts |= {f"config.{name}": value for name, value in flatten(json.loads(config.to_json_best_effort())).items()}
    facts |= {f"the version of {name}": version for name, version in versions().items()}
    return facts | code_facts(Path(__file__).resolve().parent)


def until_preempted(config) -> None:
    """``run_in_workdir``; a training that was told to stop ends all processes with a code of its own."""
    from rcjax.distributed import leads
    from rcjax.train.preemption import EXIT_CODE, PreemptedError

    try:
        run_in_workdir(config)
    except PreemptedError as told:
        if leads():
            print(told, file=sys.stderr)
        sys.exit(EXIT_CODE)


def run_in_workdir(config) -> None:
    """Training and what follows it, in a workdir."""
    from rcjax.pipeline import Pipeline, open_shared_workdir
    from rcjax.progress import say

    pipeline = Pipeline(config, open_shared_workdir(WORKDIR.value, config), executable=EXECUTABLE.value)
    if MODE.value == "pipeline":
        results = pipeline.run()
        low, high = results["interval"]
        say(f"pass@1 {results['pass@1']:.1%} [{low:.1%}, {high:.1%}] on {results['num_problems']} held-out problems")
        if "baseline" in results:
            say(f"baseline (instructions alone, as many tokens): pass@1 {results['baseline']['pass@1']:.1%}")
        say(f"report: {os.path.relpath(pipeline.workdir.report)}")
        return
    if MODE.value == "train":
        pipeline.check()
        pipeline.build_data()
        pipeline.make_tokenizer()
        pipeline.train()
        return
    params, step = pipeline.trained_params(STEP.value, WEIGHTS.value)
    if MODE.value == "evaluate":
        pipeline.evaluate(params, step)
        pipeline.say_evaluation()
    else:
        pipeline.export(params, step, OUTPUT.value, dtype=DTYPE.value, max_shard_size=MAX_SHARD_SIZE.value)


def evaluate_on_benchmarks() -> None:
    """Scores of any model on benchmarks, and the comparison of two evaluations."""
    from rcjax.evaluation import command

    if several():
        raise UsageError("--mode=evaluate on benchmarks runs in one process; leave --distributed and its like out")
    directory = WORKDIR.value
    if MODEL.value and os.path.isdir(os.path.join(MODEL.value, "checkpoints")):
        directory = MODEL.value
    source = None if directory and directory == (MODEL.value or directory) else MODEL.value
    output = OUTPUT.value or (os.path.join(directory, "benchmarks") if directory else None)
    if output is None:
        raise UsageError("--mode=evaluate on benchmarks needs --output=DIR for the scores")
    if not BENCHMARKS.value:
        if COMPARE.value is None:
            raise UsageError(
                "--mode=evaluate of a --model, or with flags for benchmarks, needs --benchmarks=NAMES, e.g. "
                "--benchmarks=humaneval+,mbpp+"
            )
        command.compare(output, COMPARE.value)
        return
    if source is None and directory is None:
        raise UsageError("--mode=evaluate needs --model=DIR_OR_HUB_ID_OR_WORKDIR or --workdir=W")
    config = CONFIG.value or (stored_config(directory) if source is None else _load_config(_BASE_CONFIG))
    settings = dict(
        max_new_tokens=MAX_NEW_TOKENS.value or command.MAX_NEW_TOKENS,
        num_samples=NUM_SAMPLES.value,
        **sampling_flags(),
        rounds=ROUNDS.value,
        prompt_format=PROMPT_FORMAT.value,
        dtype=config.train.compute_dtype,
        batch_size=BATCH_SIZE.value or config.evaluation.batch_size,
    )
    command.evaluate(
        config,
        benchmarks=BENCHMARKS.value,
        data=DATA.value.split(",") if DATA.value else [],
        settings=settings,
        output=output,
        source=source,
        workdir=directory if source is None else None,
        compare=COMPARE.value,
    )


def score() -> None:
    """Verdicts on samples of a file."""
    for flag, example in ((BENCHMARK, "humaneval+"), (SAMPLES, "samples.jsonl")):
        if not flag.value:
            raise UsageError(f"--mode=score needs --{flag.name}, e.g. --{flag.name}={example}")
    from rcjax.evaluation.score_files import score_files

    score_files(
        BENCHMARK.value,
        SAMPLES.value,
        data=DATA.value,
        output=OUTPUT.value,
        allow_partial=ALLOW_PARTIAL.value,
        workers=WORKERS.value,
        fixed=EVALPLUS_RULES.value == "fixed",
    )


def stored_config(workdir: str):
    """The config that a workdir was made with."""
    from ml_collections import ConfigDict

    from rcjax.workdir import CONFIG_FILE, read_json

    stored = read_json(Path(workdir) / CONFIG_FILE)
    if not stored:
        raise UsageError(f"--mode={MODE.value} needs --config=FILE, e.g. --config=configs/tiny.py")
    return ConfigDict(stored)


def inspect() -> None:
    """What a checkpoint is, and whether it can be imported."""
    if MODEL.value is None:
        raise UsageError("--mode=inspect needs --model=DIR_OR_HUB_ID")
    from rcjax.hf.hub import model_directory
    from rcjax.hf.inspect import inspect_model, shipped_configs

    directory = model_directory(MODEL.value, weights=False)
    print(inspect_model(directory, shipped_configs(Path(__file__).resolve().parent / "configs")))


def plan() -> None:
    """What a config needs on chips that are not there."""
    from rcjax.plan import topology as topologies
    from rcjax.plan.child import supervise

    if not TOPOLOGY.value:
        raise UsageError(f"--mode=plan needs --topology=CHIP:GRID, e.g. {topologies.EXAMPLES}")
    if SEARCH.value and SAVE.value:
        raise UsageError("--search saves nothing; give the flags that it prints, and --save, in a second call")
    config = CONFIG.value or (stored_config(WORKDIR.value) if WORKDIR.value else None)
    if config is None or "rows" in config:
        raise UsageError("--mode=plan needs --config=FILE of one run, e.g. --config=configs/ds67b.py")
    topology = topologies.parse(TOPOLOGY.value)
    topologies.prepare(topology)  # before the first use of JAX
    supervise(topology)
    from rcjax.plan.command import plan

    files = [argument.partition("=")[2] for argument in sys.argv if argument.startswith("--config=")]
    plan(
        config,
        files[-1] if files else WORKDIR.value,
        topology,
        effort=EFFORT.value,
        searched=SEARCH.value,
        directory=SAVE.value,
        output=OUTPUT.value,
    )


def generate() -> None:
    """Prompts in, programs out."""
    from rcjax.generate import generate_programs

    directory = MODEL.value or (os.path.join(WORKDIR.value, "export") if WORKDIR.value else None)
    if directory is None:
        raise UsageError("--mode=generate needs --model=DIR (an exported model) or --workdir=W")
    if (PROMPT.value is None) == (PROMPT_FILE.value is None):
        raise UsageError("--mode=generate needs either --prompt=TEXT or --prompt_file=FILE")
    sampling = sampling_flags()
    if PROMPT.value is not None:
        prompts = [PROMPT.value]
    else:
        with open(PROMPT_FILE.value, encoding="utf-8") as lines:
            prompts = [line.strip() for line in lines if line.strip()]
    from rcjax.hf.hub import model_directory

    directory = model_directory(directory)
    print(
        "\n\n".join(
            generate_programs(
                directory, prompts, MAX_NEW_TOKENS.value or 256, num_samples=NUM_SAMPLES.value, **sampling
            )
        )
    )


def sampling_flags() -> dict[str, float | int]:
    """How programs are drawn, as keyword arguments of ``rcjax.decode.generate``."""
    from rcjax.decode.sampling import check_range

    values = {flag.name: flag.value for flag in (TEMPERATURE, TOP_P, TOP_K, SEED)}
    check_range(**values, prefix="--")
    if not TEMPERATURE.value:
        useless = list(filter(given, (TOP_P, TOP_K, SEED, NUM_SAMPLES)))
        if useless:
            raise UsageError(
                f"--{useless[0].name}={useless[0].value} changes nothing without draws; add --temperature=T, e.g. 0.8"
            )
    return values


def parse_flags(argv: list[str]) -> list[str]:
    """absl's flag parsing, with an unknown config field answered by the near ones."""
    argv = [argument.replace("--allow-partial", "--allow_partial", 1) for argument in argv]
    names = [argument.partition("=")[0] for argument in argv]
    if "--mode=evaluate" in argv and "--config" not in names and any(name.startswith("--config.") for name in names):
        argv = [argv[0], f"--config={_BASE_CONFIG}", *argv[1:]]  # a model of somebody else's has no config
    for argument in argv:
        path = argument.removeprefix("--config=").partition(":")[0]
        if path != argument.partition(":")[0] and not os.path.isfile(path):
            print(f"UsageError: --config={path}: there is no such file", file=sys.stderr)
            sys.exit(2)
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        # A config file that raises arrives as a traceback: its last line says what is wrong.
        print(f"UsageError: {str(error).strip().splitlines()[-1].strip()}; see --help", file=sys.stderr)
        sys.exit(2)
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        print(f"UsageError: {_config_complaint(argv, error)}", file=sys.stderr)
        sys.exit(2)


def _config_complaint(argv: list[str], error: Exception) -> str:
    given = [argument.removeprefix("--config.").split("=")[0] for argument in argv if argument.startswith("--config.")]
    files = [argument.split("=", 1)[1] for argument in argv if argument.startswith("--config=")]
    if files:
        from rcjax.workdir import flatten

        try:
            known = flatten(_load_config(files[-1]).to_dict())
        except Exception as failed:  # the file itself is at fault: say so
            return f"config file {files[-1]} can not be read: {failed}"
        for field in given:
            if field not in known:
                near = difflib.get_close_matches(field, known, n=3, cutoff=0.5)
                last = field.split(".")[-1]
                near += [name for name in known if name.split(".")[-1] == last and name not in near]
                hint = f"; did you mean {' or '.join('config.' + name for name in near)}?" if near else ""
                return f"unknown field config.{field}{hint}"
    return str(error)


def _load_config(path: str):
    import importlib.util

    path, _, argument = path.partition(":")
    spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument) if argument else module.get_config()


if __name__ == "__main__":
    keep_compiled_programs()
    app.run(main, flags_parser=parse_flags)
