"""The stages from nothing to a one-off coder. Each writes its output whole and is skipped when it is there."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import rcjax
from rcjax.data import records
from rcjax.distributed import check_same, leads, tell, together
from rcjax.progress import progress, say, silent
from rcjax.workdir import (
    EVALUATION_FILE,
    METRICS_FILE,
    Workdir,
    WorkdirError,
    open_workdir,
    read_json,
    see_workdir,
    write_json,
)


class StageError(ValueError):
    """What other processes raise when process 0 could not do what it alone does."""


def open_shared_workdir(path: str | Path, config: ConfigDict) -> Workdir:
    """Process 0 opens and locks the directory (``open_workdir``), the others make sure that they see the same."""
    workdir = None
    with together(WorkdirError):
        if leads():
            workdir = open_workdir(path, config)
    mark = tell(workdir and workdir.mark)
    with together(WorkdirError):
        return workdir or see_workdir(path, mark)


class Pipeline:
    """One run. Methods in the order in which ``run`` calls them; each can also be asked for alone.

    Where the run has several processes, all call them alike. Process 0 alone writes into the workdir and runs
    programs; the others wait for it.
    """

    def __init__(self, config: ConfigDict, workdir: Workdir, *, executable: str | None = None):
        self.config, self.workdir, self.executable = config, workdir, executable

    def run(self) -> dict[str, Any]:
        """All stages; returns what ``results.json`` holds."""
        self.check()
        self.build_data()
        self.make_tokenizer()
        params, step = self.train()
        self.evaluate(params, step)
        if self.config.baseline:
            self.train_baseline()
        self.export(params, step)
        return self.report()

    def check(self) -> None:
        """Refuses settings and checkpoints that training would refuse, before hours go into data."""
        from rcjax.train.program import check_settings

        with together(StageError):
            check_settings(self.config)
            if not self.workdir.model.exists() and self.base_model is not None:
                self.base_model.config.check_length(self.config.data.max_length, "config.data.max_length")
            self._check_mesh()

    def _check_mesh(self) -> None:
        """Refuses a mesh that does not divide the model, as far as its shape is known before there is a tokenizer."""
        from rcjax.hf.base_model import model_config, shape_of
        from rcjax.hf.tokenizer import codec
        from rcjax.layout import layout_of, mesh_of
        from rcjax.train.state import check_mesh

        mesh = mesh_of(self.config)
        stored = read_json(self.workdir.model)
        if stored:
            model = stored_shape(stored)
        elif self.base_model is not None:
            model = model_config(self.config.model, codec(self.base_model.tokenizer), self.base_model)
        else:  # the vocabulary is counted later; until then one that any mesh divides
            model = shape_of(self.config.model, dict(vocab_size=mesh.size))
        check_mesh(model, layout_of(self.config), mesh)

    # ---- data

    @property
    def train_directory(self) -> Path:
        """Where the training splits are: the user's dataset, or the one that this run builds."""
        return Path(self.config.data.train) if self.config.data.train else self.workdir.data

    def build_data(self) -> None:
        """Traces by really executing programs (``data_gen``), unless the config names a dataset."""
        with together(StageError):
            if not leads():
                return
            if self.config.data.train or self.workdir.data.exists():
                self._skip("build data", self.train_directory)
                return
            self._build_data()

    def _build_data(self) -> None:
        from data_gen.build import build, family_problems

        build_config = self.config.build
        with self._stage("build data"):
            build(
                family_problems(build_config.problems, self.config.seed),
                self.workdir.data,
                teacher=build_config.teacher,
                seed=self.config.seed,
                rounds=build_config.rounds,
                heldout=build_config.heldout,
                instruction_share=build_config.instruction_share,
                reflection_share=build_config.reflection_share,
                phrasings=build_config.phrasings,
                shown_tests=build_config.shown_tests,
            )

    @cached_property
    def repeats(self) -> dict[str, int]:
        """How often each split stands in an epoch."""
        data = self.config.data
        return {records.INSTRUCTION: data.instruction_repeats, records.REFLECTION: data.reflection_repeats}

    @cached_property
    def conversations(self) -> dict[str, list]:
        """Training conversations by split."""
        return records.training_conversations(self.train_directory, self.repeats, self.config.data.sources)

    # ---- tokenizer

    @cached_property
    def base_model(self):
        """The checkpoint that training starts from; None from scratch."""
        if not self.config.model.init:
            return None
        from rcjax.hf.base_model import open_base_model

        return open_base_model(self.config.model, self.config.tokenizer.path)

    def make_tokenizer(self) -> None:
        """The checkpoint's or the named one with the block tokens, or a byte-level BPE on the training text."""
        with together(StageError):
            if not leads():
                return
            if self.workdir.tokenizer.exists():
                self._skip("tokenizer", self.workdir.tokenizer)
                return
            self._make_tokenizer()

    def _make_tokenizer(self) -> None:
        from rcjax.hf.hub import model_directory
        from rcjax.hf.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
        from rcjax.hf.vocabulary import add_block_tokens

        with self._stage("tokenizer"):
            settings = self.config.tokenizer
            if self.base_model is not None:
                tokenizer = self.base_model.tokenizer
            elif settings.path:
                tokenizer, _ = add_block_tokens(load_tokenizer(model_directory(settings.path, weights=False)))
            else:
                texts = records.texts(self.conversations)
                tokenizer = train_tokenizer(texts, settings.vocab_size, settings.pretokenizer)
            save_tokenizer(tokenizer, self.workdir.tokenizer)

    @cached_property
    def tokenizer(self):
        """The run's tokenizer."""
        from rcjax.hf.tokenizer import load_tokenizer

        return load_tokenizer(self.workdir.tokenizer)

    @cached_property
    def codec(self):
        """The tokenizer as plain functions (``blocks.TextCodec``)."""
        from rcjax.hf.tokenizer import codec

        return codec(self.tokenizer)

    # ---- model and training

    @cached_property
    def model_config(self):
        """The model's shape: the checkpoint's or ``config.model``, and the tokenizer's size.

        The workdir keeps it, so that later stages and resumed runs need the checkpoint no more.
        """
        from rcjax.hf.base_model import model_config

        stored: dict[str, Any] = {}
        with together(StageError):
            if leads():
                stored = read_json(self.workdir.model)
                if not stored:
                    config = model_config(self.config.model, self.codec, self.base_model)
                    stored = {**config.to_hf(), "vocab_multiple": config.vocab_multiple}
                    write_json(self.workdir.model, stored)
        return stored_shape(tell(stored))

    def train(self) -> tuple[Any, int]:
        """The student, by dynamically masked distillation; returns its parameters and the number of steps."""
        from rcjax.train.loop import train

        data = self._tokenise(self.conversations, self.repeats)
        check_same(
            [records.checksum(source) for source in data.sources],
            lambda process: (
                f"process {process} reads other examples from {self.train_directory} than process 0; copy "
                "the dataset again, or name one with config.data.train that all share"
            ),
        )
        say(f"train on {data.describe()}; model of {self.model_config.num_params:,} parameters")
        with self._stage("train") as stage:
            run = train(
                self.config,
                self.workdir.path,
                self.model_config,
                data.sources,
                data.repeats,
                load=self._load,
                teacher=self.teacher,
                executable=self.executable,
                evaluate=self._evaluate_beside if self.config.evaluation.get("every", 0) else None,
            )
            stage.did_something = run.steps_done > 0
        return run.params, run.steps

    @cached_property
    def teacher(self):
        """Another network that teaches (``config.teacher.name`` is ``frozen``); None: the student itself."""
        if self.config.teacher.name != "frozen":
            return None
        from rcjax.hf.base_model import open_teacher

        return open_teacher(self.config.teacher, self.model_config, self.tokenizer)

    @property
    def _load(self):
        """Reads the parameters that training starts from, given where each is to lie; None: fresh ones."""
        if not self.config.model.init:
            return None
        return lambda shardings: self.base_model.load(self.model_config, shardings)

    def _tokenise(self, conversations: dict[str, list], repeats: dict[str, int]) -> records.TrainingData:
        settings = self.config.data
        return records.tokenise(conversations, repeats, self.codec, settings.max_length, settings.overlong)

    def train_baseline(self) -> None:
        """The same model on instruction data alone, for as many computed tokens; evaluated alike."""
        from rcjax.objective import TABLES
        from rcjax.train.loop import train

        if tell((self.workdir.baseline_evaluation / EVALUATION_FILE).exists()):
            self._skip("baseline", self.workdir.baseline)
            return
        with self._stage("baseline"):
            config = self.config.copy_and_resolve_references()
            repeats = {records.INSTRUCTION: 1}
            if not self.conversations.get(records.INSTRUCTION):
                raise records.DatasetError(
                    "config.baseline needs instruction examples: a dataset with an `instruction` split, "
                    "and config.data.instruction_repeats of at least 1"
                )
            conversations = {records.INSTRUCTION: self.conversations[records.INSTRUCTION]}
            data = self._tokenise(conversations, repeats)
            tokens = tell(last_metrics(self.workdir.path)["computed_tokens"] if leads() else None)
            per_example = sum(len(example) - 1 for example in data.sources[0]) / len(data.sources[0])
            for field in ("alpha", "ce_weight", "kd_weight", *TABLES):
                config.objective[field] = None
            config.objective.name = "ce"
            config.teacher.name = "self"
            config.train.steps = max(1, round(tokens / (per_example * config.train.batch_size)))
            with together(StageError):
                self.workdir.baseline.mkdir(exist_ok=True)
            run = train(
                config,
                self.workdir.baseline,
                self.model_config,
                data.sources,
                data.repeats,
                title="train baseline",
                load=self._load,
            )
            self._evaluate(run.params, self.workdir.baseline_evaluation, "evaluate baseline")

    # ---- what came of it

    def evaluate(self, params: Any, step: int) -> None:
        """Greedy one-off generation on held-out problems, run against their tests."""
        if self._made_from(step, self.workdir.evaluation):
            self._skip("evaluate", self.workdir.evaluation)
            return
        with self._stage("evaluate"):
            self._evaluate(params, self.workdir.evaluation, "evaluate")
            self._remember(step, self.workdir.evaluation)

    def _evaluate(self, params: Any, directory: Path, title: str) -> None:
        from rcjax.evaluation.score import evaluate

        problems = self._heldout_problems

        def write_programs(prompts: list[str]) -> list[str]:
            with progress(f"{title}: writing programs", total=len(prompts), unit="programs") as bar:
                return self._write_programs(params, prompts, bar.advance)

        if leads():
            evaluate(problems, write_programs).save(directory)
        else:
            write_programs([problem.prompt for problem in problems])
        tell(None)  # the others wait until the programs have been run

    def _evaluate_beside(self, params: Any) -> dict[str, float]:
        """The figures of ``evaluate`` for parameters on the host, without a word: training shows its own progress."""
        from rcjax.evaluation.score import evaluate

        found = evaluate(self._heldout_problems, functools.partial(self._write_programs, params), progress=silent)
        lengths = [len(sample.generation) for sample in found.samples]
        return {"pass@1": found.pass_at(1), "mean_characters": sum(lengths) / len(lengths)}

    @cached_property
    def _heldout_problems(self):
        from rcjax.evaluation.problems import read_problems

        source = self.config.data.heldout or self.train_directory
        return read_problems(records.read_split(source, records.HELDOUT), self.config.evaluation.problems or None)

    def _write_programs(self, params: Any, prompts: list[str], on_advance: Any = None) -> list[str]:
        from rcjax.decode import generate
        from rcjax.generate import answers

        return answers(
            functools.partial(generate, self.model_config, params),
            self.codec,
            prompts,
            max_new_tokens=self.config.evaluation.max_new_tokens,
            batch_size=self.config.evaluation.batch_size,
            on_advance=on_advance,
        )

    def export(
        self,
        params: Any,
        step: int,
        output: str | None = None,
        *,
        dtype: str | None = None,
        max_shard_size: str | None = None,
    ) -> None:
        """A Hugging Face directory, loaded again and compared; None takes the config's."""
        directory = Path(output) if output else self.workdir.export
        with together(WorkdirError):
            if leads() and output and directory.exists():
                raise WorkdirError(f"--output={output} exists already; name a directory that does not")
        if not output and self._made_from(step, directory):
            self._skip("export", directory)
            return
        from rcjax.hf.export import export, export_steps

        with self._stage("export") as stage:
            stage.did_something = output is None  # the run's own export is the stage
            with progress("export", total=export_steps(self.model_config), unit="tensors") as bar:
                report = export(
                    self.model_config,
                    params,
                    self.tokenizer,
                    directory,
                    dtype=dtype or self.config.export.dtype,
                    max_shard_size=max_shard_size or self.config.export.max_shard_size,
                    metadata=self._model_card(step) if leads() else None,
                    on_advance=bar.advance,
                )
        if output is None:
            self._remember(step, directory)
        say(f"export: {report}")

    def report(self) -> dict[str, Any]:
        """results.json and report.html; cheap, so always made anew. Returns what the first holds."""
        results = None
        with together(StageError):
            if leads():
                results = self._report()
        return tell(results)

    def _report(self) -> dict[str, Any]:
        from rcjax.evaluation.report import write_report
        from rcjax.evaluation.score import Evaluation, write_results
        from rcjax.train.metrics import read_metrics

        evaluation = Evaluation.load(self.workdir.evaluation)
        baseline = None
        if (self.workdir.baseline_evaluation / EVALUATION_FILE).exists():
            baseline = Evaluation.load(self.workdir.baseline_evaluation)
        seconds = read_json(self.workdir.seconds)
        results = write_results(
            self.workdir.results,
            evaluation,
            baseline=baseline,
            export=os.path.relpath(self.workdir.export, self.workdir.path),
            seconds=seconds,
        )
        write_report(
            self.workdir.report,
            metrics=read_metrics(self.workdir.path / METRICS_FILE),
            evaluation=evaluation.to_json(),
            baseline=baseline.summary() if baseline else None,
            config=json.loads(self.workdir.config.read_text()),
            summary={
                "name": self.workdir.path.name,
                "command": "python launch.py " + " ".join(shlex.quote(word) for word in sys.argv[1:]),
                "num_params": self.model_config.num_params,
                "seconds": seconds,
                "versions": versions(),
            },
        )
        return results

    def say_evaluation(self) -> None:
        """Prints the stored evaluation."""
        from rcjax.evaluation.score import Evaluation

        if not leads():
            return
        evaluation = Evaluation.load(self.workdir.evaluation)
        low, high = evaluation.interval
        say(
            f"pass@1 {evaluation.pass_at(1):.1%} [{low:.1%}, {high:.1%}] on {evaluation.num_problems} held-out problems"
        )

    def trained_params(self, step: int | None = None, weights: str = "student") -> tuple[Any, int]:
        """Parameters of a checkpoint of the workdir, the newest one unless ``step`` is given, and its step.

        Args:
          weights: ``student``, or ``ema`` for their moving average.
        """
        from rcjax.train.loop import restore_params

        if weights == "ema" and self.config.teacher.name != "ema":
            raise WorkdirError(
                f"workdir {self.workdir.path} keeps no moving average: config.teacher.name is "
                f"{self.config.teacher.name!r}; export with --weights=student"
            )
        return restore_params(self.config, self.workdir.path, self.model_config, step, weights)

    def _model_card(self, step: int) -> dict[str, Any]:
        card = {"config": json.loads(self.workdir.config.read_text()), "optimizer steps": step}
        if self.config.model.init:
            card["base_model"] = self.config.model.init
        if self._is_made_from(step, self.workdir.evaluation):
            stored = json.loads((self.workdir.evaluation / EVALUATION_FILE).read_text())
            card["pass@1"] = stored["pass@1"]
        return card

    # ---- stages

    def _made_from(self, step: int, directory: Path) -> bool:
        """Whether ``directory`` is there and was made from the checkpoint of ``step``, not of an earlier one."""
        return tell(leads() and self._is_made_from(step, directory))

    def _is_made_from(self, step: int, directory: Path) -> bool:
        return directory.exists() and read_json(self.workdir.made_from).get(directory.name) == step

    def _remember(self, step: int, directory: Path) -> None:
        if leads():
            write_json(self.workdir.made_from, {**read_json(self.workdir.made_from), directory.name: step})

    def _skip(self, name: str, place: Path | str) -> None:
        say(f"{name}: already in {os.path.relpath(place)}")

    def _stage(self, name: str):
        return _Stage(name, self.workdir)


class _Stage:
    """Keeps the seconds that a stage took, and says them."""

    def __init__(self, name: str, workdir: Workdir):
        self._name, self._workdir = name, workdir

    def __enter__(self) -> _Stage:
        self.did_something = True
        self._start = time.monotonic()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is not None or not self.did_something or not leads():
            return
        seconds = read_json(self._workdir.seconds)
        seconds[self._name] = round(time.monotonic() - self._start, 1)
        write_json(self._workdir.seconds, seconds)
        say(f"{self._name}: done in {seconds[self._name]:.0f} s")


def stored_shape(stored: dict[str, Any]) -> Any:
    """The model's shape (``LlamaConfig``) from what ``model.json`` of a workdir holds."""
    from rcjax.model import LlamaConfig

    fields = {name: value for name, value in stored.items() if name != "vocab_multiple"}
    return dataclasses.replace(LlamaConfig.from_hf(fields), vocab_multiple=stored["vocab_multiple"])


def last_metrics(directory: Path) -> dict[str, Any]:
    """The last step's line of a finished run's metrics; lines of evaluations may stand behind it."""
    rows = map(json.loads, reversed((directory / METRICS_FILE).read_text().splitlines()))
    return next(row for row in rows if "computed_tokens" in row)


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    names = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "tokenizers", "numpy")
    return {"python": platform.python_version(), "rcjax": rcjax.__version__} | {
        name: importlib.metadata.version(name) for name in names
    }
