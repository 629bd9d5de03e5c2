"""Compiled programs of training on disk: ``--mode=plan --save=DIR`` writes them, ``--executable=DIR`` runs them.

A directory holds ``manifest.json``, all that the programs were made from, and one file a program. They are what JAX
serialises, which Python unpickles: load those that you made yourself.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from ml_collections import ConfigDict

import rcjax
from rcjax.train.program import Program
from rcjax.train.state import abstract_state
from rcjax.train.step import Steps
from rcjax.workdir import flatten, write_json

MANIFEST = "manifest.json"
# Fields of a config that no program depends on.
FREE = ("data", "build", "tokenizer", "curriculum", "profile", "checkpoint", "evaluation", "export", "baseline", "seed")
FREE_FIELDS = (
    *("mesh", "model"),  # what becomes of these is compared instead
    *("train.epochs", "train.steps", "train.log_every", "teacher.model", "objective.normalisation"),
)
# Fields of a model's shape that no program depends on.
FREE_SHAPE = ("family", "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings")
PACKAGES = ("jax", "jaxlib", "libtpu")


class ExecutableError(ValueError):
    """Programs that can not be loaded, or that belong to another training; one sentence with the mend."""


def origin(config: ConfigDict, program: Program, total_steps: int) -> dict[str, Any]:
    """All that the programs of a training follow from, as a flat dict: what ``manifest.json`` holds."""
    fields = {
        f"config.{name}": value
        for name, value in flatten(config.to_dict()).items()
        if not any(name == free or name.startswith(f"{free}.") for free in (*FREE, *FREE_FIELDS))
    }
    for name, shape in (("model", program.model), ("teacher", program.loss.teacher)):
        values = {} if shape is None else flatten(dataclasses.asdict(shape))
        fields |= {f"{name}.{field}": value for field, value in values.items() if field not in FREE_SHAPE}
    device = program.mesh.devices.flat[0]
    fields |= {f"config.mesh.{axis}": size for axis, size in program.mesh.shape.items()}
    fields |= {"optimizer steps": total_steps, "device kind": device.device_kind, "devices": program.mesh.size}
    fields |= {"version of rcjax": rcjax.__version__}
    for package in PACKAGES:
        if package != "libtpu" or device.platform == "tpu":
            fields[f"version of {package}"] = importlib.metadata.version(package)
    return json.loads(json.dumps(fields, default=str))  # as it will be read again


def save(directory: Path, fields: Mapping[str, Any], programs: Mapping[str, Any]) -> None:
    """Writes compiled programs by name, aside first: the directory appears whole.

    Raises:
      ExecutableError: it is there already, or the compiler's result can not be stored.
    """
    if directory.exists():
        raise ExecutableError(f"--save={directory} exists already; name a directory that does not")
    aside = directory.with_name(f"{directory.name}.partial-{os.getpid()}")
    aside.mkdir(parents=True)
    try:
        for name, program in programs.items():
            (aside / name).write_bytes(serialize_executable.serialize(program)[0])
        write_json(aside / MANIFEST, dict(fields))
        aside.rename(directory)
    except ValueError as error:
        raise ExecutableError(f"--save={directory}: these programs can not be stored ({error})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def accumulate_name(microbatch: Mapping[str, Any]) -> str:
    """File of the program for microbatches of these shapes."""
    taught = microbatch["teacher_tokens"].shape[1] if "teacher_tokens" in microbatch else 0
    return f"accumulate-{microbatch['tokens'].shape[1]}-{taught}"


def load(directory: str | Path, config: ConfigDict, program: Program, total_steps: int) -> Steps:
    """The steps of ``program``, read instead of compiled.

    Raises:
      ExecutableError: nothing is there, or it was made from something else (the field is named).
    """
    directory = Path(directory)
    if not (directory / MANIFEST).is_file():
        raise ExecutableError(f"--executable={directory} holds no {MANIFEST}; write it with --mode=plan --save=DIR")
    stored = json.loads((directory / MANIFEST).read_text())
    mine = origin(config, program, total_steps)
    for field in sorted(stored.keys() | mine.keys()):
        if stored.get(field) != mine.get(field):
            raise ExecutableError(
                f"--executable={directory} was made with {field} {stored.get(field)!r}, but this run has "
                f"{mine.get(field)!r}; plan again with --save, or leave --executable out"
            )
    steps, devices = program.steps, list(program.mesh.devices.flat)
    state = abstract_state(program.model, program.tx, program.shardings)
    sums = jax.eval_shape(steps.zeros)

    def read(name: str, arguments: tuple, result: Any) -> Callable:
        try:
            data = (directory / name).read_bytes()
        except FileNotFoundError:
            raise ExecutableError(f"--executable={directory} holds no program {name}; plan again with --save") from None
        trees = jax.tree.structure((arguments, {})), jax.tree.structure(result)
        try:
            return serialize_executable.deserialize_and_load(data, *trees, devices[0].client, devices)
        except Exception as error:  # of the compiler's library, of many kinds
            reason = str(error).strip().splitlines()[0]
            raise ExecutableError(f"{directory / name} can not be loaded ({reason}); plan again with --save") from error

    loaded: dict[str, Callable] = {}

    def accumulate(params, sums, microbatch, teacher_params=None):
        name = accumulate_name(microbatch)
        arguments = (params, sums, microbatch, teacher_params)
        if name not in loaded:
            loaded[name] = read(name, arguments, sums)
        return loaded[name](*arguments)

    return dataclasses.replace(
        steps,
        zeros=read("zeros", (), sums),
        accumulate=accumulate,
        update=read("update", (state, sums), jax.eval_shape(steps.update, state, sums)),
    )
