"""rcjax: from reflection traces to a code LLM that writes the right program in one go.

    python launch.py --config=configs/tiny.py --workdir=runs/tiny

Modes (--mode=NAME):

  pipeline   every stage in order, each skipped when its output is already in the workdir:
             build data, train a tokenizer, train, evaluate, export, report. The default.
  train      the data, tokenizer and train stages alone.
  evaluate   greedy one-off generation of a workdir's newest checkpoint on the held-out problems, run against
             their tests; prints pass@1 and writes WORKDIR/evaluation.
  export     a workdir's checkpoint as a Hugging Face directory: --output=DIR (default WORKDIR/export), --step=N
             (default the newest), --weights=ema, --dtype=bfloat16, --max_shard_size=5GB. It is read again and compared
             before it gets its name.
  generate   a prompt or a file in, code out: --prompt="Write ..." or --prompt_file=FILE (one prompt a line), from
             --model=DIR_OR_HUB_ID (an export) or --workdir=W (its export). Greedy; with --temperature=T drawn
             ([--top_p=P] [--top_k=K] [--seed=S]), --num_samples=N programs a prompt.
  ablate     many runs of one config, each with a little changed, several seeds of each, and a table of what came of
             them: --config=configs/ablations.py:tiny --workdir=W [--seeds=5] [--rows=paper,curricula,ROW]. Started in
             several shells at once, each takes runs that no other is at.
  inspect    what a checkpoint is, --model=DIR_OR_HUB_ID: family, parameters, memory, vocabulary, rope, the config that
             fits, and what would be refused.

Training starts from any Llama-family checkpoint with --config.model.init=DIR_OR_HUB_ID. A workdir remembers its config:
--config may be left out in it.

A run that was stopped, however hard, goes on where it was when the same command is given again.

Any field of the config can be overridden: --config.optimizer.learning_rate=1e-4. `configs/base.py` lists every
field with its meaning; `python -m data_gen --help` tells how to build traces from your own problems.
"""

from __future__ import annotations

import difflib
import os
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from rcjax.host_memory import ask_for_huge_pages

MODES = ("pipeline", "train", "evaluate", "export", "generate", "ablate", "inspect")

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The config file, e.g. configs/tiny.py; fields are overridden by --config.FIELD=VALUE."
)
MODE = flags.DEFINE_enum("mode", "pipeline", MODES, "What to do; see above.")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run: data, tokenizer, checkpoints, metrics, report.")
OUTPUT = flags.DEFINE_string("output", None, "Directory that --mode=export writes; it must not exist yet.")
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
MODEL = flags.DEFINE_string("model", None, "Hugging Face directory or Hub id for --mode=generate and --mode=inspect.")
PROMPT = flags.DEFINE_string("prompt", None, "A task in words, for --mode=generate.")
PROMPT_FILE = flags.DEFINE_string("prompt_file", None, "File with one task a line, for --mode=generate.")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 256, "Longest generation of --mode=generate.", lower_bound=1)
TEMPERATURE = flags.DEFINE_float(
    "temperature", 0.0, "--mode=generate draws from softmax(logits / temperature); 0: the most likely token."
)
TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw among the fewest most likely tokens with this share of the probability.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Draw among so many most likely tokens; 0: among all.")
SEED = flags.DEFINE_integer("seed", 0, "Of the draws: the same seed draws the same programs.")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1, "Programs that --mode=generate draws for a prompt.", lower_bound=1)

ROWS = flags.DEFINE_list("rows", ["paper"], "Groups of rows and rows that --mode=ablate runs; see the config file.")
SEEDS = flags.DEFINE_integer("seeds", 5, "Runs of each row of --mode=ablate.", lower_bound=1)


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
        if MODE.value == "generate":
            generate()
        elif MODE.value == "inspect":
            inspect()
        else:
            run()
    except (ValueError, OSError) as error:
        if os.environ.get("RCJAX_TRACEBACK"):
            raise
        print(f"{type(error).__name__}: {error}\n(RCJAX_TRACEBACK=1 shows where)", file=sys.stderr)
        sys.exit(2)


def run() -> None:
    """The modes that work in a workdir with a config."""
    if not WORKDIR.value:
        raise UsageError(f"--mode={MODE.value} needs --workdir=DIR, e.g. --workdir=runs/tiny")
    for flag, needed in (
        (STEP, "export"),
        (WEIGHTS, "export"),
        (DTYPE, "export"),
        (MAX_SHARD_SIZE, "export"),
        (OUTPUT, "export"),
        (ROWS, "ablate"),
        (SEEDS, "ablate"),
        (TEMPERATURE, "generate"),
        (TOP_P, "generate"),
        (TOP_K, "generate"),
        (SEED, "generate"),
        (NUM_SAMPLES, "generate"),
    ):
        if flags.FLAGS[flag.name].present and MODE.value != needed:
            raise UsageError(f"--{flag.name} belongs to --mode={needed}, not to --mode={MODE.value}")
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
    from rcjax.pipeline import Pipeline
    from rcjax.progress import say
    from rcjax.workdir import open_workdir

    pipeline = Pipeline(config, open_workdir(WORKDIR.value, config))
    if MODE.value == "pipeline":
        results = pipeline.run()
        low, high = results["interval"]
        say(f"pass@1 {results['pass@1']:.1%} [{low:.1%}, {high:.1%}] on {results['num_problems']} held-out problems")
        if "baseline" in results:
            say(f"baseline (instructions alone, as many tokens): pass@1 {results['baseline']['pass@1']:.1%}")
        say(f"report: {os.path.relpath(pipeline.workdir.report)}")
        return
    if MODE.value == "train":
        pipeline.check_base_model()
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
            generate_programs(directory, prompts, MAX_NEW_TOKENS.value, num_samples=NUM_SAMPLES.value, **sampling)
        )
    )


def sampling_flags() -> dict[str, float | int]:
    """How --mode=generate draws, as keyword arguments of ``rcjax.decode.generate``."""
    from rcjax.decode.sampling import check_range

    values = {flag.name: flag.value for flag in (TEMPERATURE, TOP_P, TOP_K, SEED)}
    check_range(**values, prefix="--")
    if not TEMPERATURE.value:
        given = [flag for flag in (TOP_P, TOP_K, SEED, NUM_SAMPLES) if flags.FLAGS[flag.name].present]
        if given:
            raise UsageError(
                f"--{given[0].name}={given[0].value} changes nothing without draws; add --temperature=T, e.g. 0.8"
            )
    return values


def parse_flags(argv: list[str]) -> list[str]:
    """absl's flag parsing, with an unknown config field answered by the near ones."""
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
    ask_for_huge_pages()
    app.run(main, flags_parser=parse_flags)
