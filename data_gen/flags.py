"""The commands and their flags."""

from __future__ import annotations

import argparse

DESCRIPTION = """\
Builds reflection traces (attempt, feedback of really running it, reflection, correction) from programming problems,
imports published ones, checks and shows what was built.
"""
EPILOG = """\
examples:
  python -m data_gen build --problems=families --count=2000 --output=runs/traces
  python -m data_gen build --problems=sanitized-mbpp.json --teacher=bugs --output=runs/mbpp
  python -m data_gen build --problems=evol.jsonl --teacher=openai --model=gpt-4o --price-in=2.5 --price-out=10 \\
      --spend-limit=20 --decontaminate=HumanEval.jsonl.gz --output=runs/evol
  python -m data_gen build --problems=tasks.jsonl --teacher=checkpoint --model=runs/tiny/export --output=runs/own
  python -m data_gen import --input=reflection_seq.jsonl --output=runs/published
  python -m data_gen inspect runs/mbpp --examples=3 --html=mbpp.html
  python -m data_gen validate runs/mbpp
  python launch.py --config=configs/tiny.py --workdir=runs/mine --config.data.train=runs/mbpp
"""


def heldout(text: str) -> float | int:
    """A share ("0.05") or a number of tasks ("200")."""
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a share below 1 nor a whole number") from error


def names(text: str) -> list[str]:
    """Names with commas between them."""
    return [name for name in text.split(",") if name]


def parser() -> argparse.ArgumentParser:
    """The commands and their flags."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python -m data_gen", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _build(commands, raw)
    _import(commands, raw)
    look = commands.add_parser(
        "inspect",
        help="show the statistics of a dataset directory and some examples",
        description="Shows statistics and some examples, coloured by block type.",
    )
    look.add_argument("directory", metavar="DIR", help="directory that `build` or `import` made")
    look.add_argument("--split", default="", help="instruction, reflection or heldout (default: reflection)")
    look.add_argument("--examples", type=int, help="how many examples (default 3; in a page 200)")
    look.add_argument("--seed", type=int, default=0, help="which examples (default 0)")
    look.add_argument("--html", metavar="FILE", help="write a page to browse in instead")
    check = commands.add_parser(
        "validate",
        help="execute a sample of a dataset again",
        description="Executes a sample again: every EXECUTION block must be what its program answers, every answer "
        "must pass its tests, every verdict must hold. Ends with status 1 where one does not.",
    )
    check.add_argument("directory", metavar="DIR", help="directory that `build` or `import` made")
    check.add_argument("--examples", type=int, default=100, help="how many a split; 0 for all (default 100)")
    check.add_argument("--seed", type=int, default=0, help="which examples (default 0)")
    check.add_argument("--workers", type=int, help="sandbox workers; default: one a usable CPU")
    commands.add_parser(
        "languages",
        help="show which languages programs can be written in here, and how to add the rest",
        description="Shows which toolchains this machine has, the packages of those that it lacks, and the isolation.",
    )
    for command in commands.choices.values():
        command.add_argument(
            "--require_isolation",
            "--require-isolation",
            action="store_true",
            help="refuse to run programs where something of the sandbox's isolation is lacking (docs/sandbox.md)",
        )
    return top


def _build(commands: argparse._SubParsersAction, raw: type) -> None:
    from data_gen.readers import SCHEMA

    build = commands.add_parser(
        "build",
        help="make a dataset directory of traces from problems",
        description="Makes a dataset directory, whole or not at all. A finished one of the same settings is kept; an "
        "unfinished one goes on where it was stopped or killed, with the same command.",
        epilog=f"the jsonl format:\n{SCHEMA}",
        formatter_class=raw,
    )
    group = build.add_argument_group("problems")
    add = group.add_argument
    add("--problems", required=True, metavar="FILE", help="problem file, or the word `families` for our own problems")
    add(
        "--format",
        choices=("auto", "mbpp", "humaneval", "humaneval-x", "multipl-e", "instructions", "jsonl", "families"),
        help="form of FILE: mbpp, humaneval (both also as evalplus's -OriginFmt), humaneval-x, multipl-e, instructions "
        "(CodeAlpaca, Evol-CodeAlpaca, CodeFeedback: no tests, the teacher writes them), jsonl (schema below), "
        "families (no file); default auto: told by the fields. FILE may be gzipped",
    )
    add("--count", type=int, default=7000, help="families only: number of distinct tasks (default 7000)")
    add("--families", metavar="NAME,..", help="families only: which (default all)")
    add("--limit", type=int, help="use the first so many problems of the file only")
    add(
        "--near-duplicates",
        type=float,
        metavar="INDEX",
        help="leave out problems whose 5-word shingles have at least this Jaccard index with an earlier one's; 0: none "
        "(default 0.8 for a file, 0 for families)",
    )
    add(
        "--decontaminate",
        type=names,
        default=[],
        metavar="FILE,..",
        help="benchmark files; problems that share 10 words in a row with one are left out and listed in removed.jsonl",
    )
    group = build.add_argument_group("teacher")
    add = group.add_argument
    add(
        "--teacher",
        default="bugs",
        metavar="NAME,..",
        help="who writes attempts: bugs (faults put into the reference; the default), omissions (faults that leave "
        "something out), slips (the other faults), openai (a chat model behind an OpenAI-compatible endpoint), "
        "checkpoint (a model on this machine); several take tasks in turn",
    )
    add("--model", default="", help="the endpoint's name of the model; or a directory or hub id for checkpoint")
    add("--base-url", default="", help="openai: the endpoint (default: the client's own)")
    add("--key-variable", default="OPENAI_API_KEY", help="openai: environment variable with the key (OPENAI_API_KEY)")
    add("--concurrency", type=int, default=32, help="problems that wait for the model at the same time (default 32)")
    add("--temperature", type=float, default=0.7, help="openai: of sampling (default 0.7)")
    add("--max-tokens", type=int, default=2048, help="most tokens of one reply (default 2048)")
    add("--tries", type=int, default=2, help="first attempts that may pass before a problem is given up (default 2)")
    add("--timeout", type=float, default=120.0, help="openai: seconds without a byte (default 120)")
    add("--retries", type=int, default=8, help="openai: further tries of a request, backing off (default 8)")
    add("--stream", action="store_true", help="openai: take replies piece by piece; --timeout is then between pieces")
    add("--price-in", type=float, default=0.0, help="openai: dollars a million prompt tokens, for the accounts")
    add("--price-out", type=float, default=0.0, help="openai: dollars a million reply tokens")
    add("--spend-limit", type=float, help="openai: dollars; the build stops before it would pass them, resumably")
    add("--prompts", metavar="DIR", help="directory with replacements for the files of data_gen/prompts")
    group = build.add_argument_group("traces")
    add = group.add_argument
    add("--rounds", type=int, default=3, help="most failed attempts in one trace (default 3)")
    add("--traces-per-problem", type=int, default=1, help="reflection examples a problem (default 1)")
    add("--phrasings", type=int, default=1, help="instruction examples a problem, each phrased otherwise (default 1)")
    add("--instruction-share", type=float, default=1.0, help="share of tasks with plain instruction examples (1.0)")
    add("--reflection-share", type=float, default=1.0, help="share of tasks with reflection traces (default 1.0)")
    add("--shown-tests", type=int, default=1, help="asserts in the CODE blocks; all tests decide (default 1)")
    add("--keep-first-try", action="store_true", help="also keep traces whose first attempt passes")
    add(
        "--verifiers",
        type=names,
        default=[],
        metavar="NAME,..",
        help="who judges besides the given tests: written (asserts by the teacher), properties (hypothesis against the "
        "reference), typing (mypy), crosshair (symbolic execution against the reference or contracts)",
    )
    add("--cpu-seconds", type=float, default=1.0, help="CPU time of one execution (default 1)")
    add("--wall-seconds", type=float, default=20.0, help="time of one execution by the clock (default 20)")
    add("--memory-mb", type=int, default=512, help="memory of one execution, MiB (default 512)")
    group = build.add_argument_group("output and running")
    add = group.add_argument
    add("--output", required=True, metavar="DIR", help="directory to make; it must not hold another build")
    add("--seed", type=int, default=0, help="decides splits, phrasings and faults (default 0)")
    add(
        "--heldout",
        type=heldout,
        default=0.05,
        help="tasks kept for evaluation: a share below 1 or a number (default 0.05)",
    )
    add("--finish", action="store_true", help="write what an unfinished build has, and do no more")
    add("--workers", type=int, help="processes, or sandbox workers; default: one a usable CPU")
    add("--runner", choices=("local", "beam"), default="local", help="local, or an Apache Beam pipeline (local)")
    add(
        "--beam-options",
        default="",
        help='beam: its flags, for example "--runner=FlinkRunner --flink_master=HOST:8081" (default: direct runner)',
    )


def _import(commands: argparse._SubParsersAction, raw: type) -> None:
    add = commands.add_parser(
        "import",
        help="make a dataset directory of published examples",
        description="Checks every field of published examples and writes them in the form that `build` writes.",
        formatter_class=raw,
    ).add_argument
    add("--input", required=True, action="append", metavar="FILE_OR_HUB_ID", help="may be given several times")
    add(
        "--format",
        choices=("auto", "reflection", "instructions"),
        default="auto",
        help="reflection (ReflectionSeq-GPT, ReflectionSeq-DS: `messages` of typed blocks) or instructions "
        "(CodeAlpaca, Evol-CodeAlpaca, CodeFeedback); default auto: told by the fields",
    )
    add("--output", required=True, metavar="DIR", help="directory to make")
    add("--skip-invalid", action="store_true", help="leave out records with a wrong field and list them; default: stop")
    add("--near-duplicates", type=float, default=0.0, metavar="INDEX", help="as of `build` (default 0: off)")
    add("--decontaminate", type=names, default=[], metavar="FILE,..", help="as of `build`")
