"""``--mode=plan``: the order of its work, and what it prints."""

from __future__ import annotations

from pathlib import Path

import jax
from ml_collections import ConfigDict

from rcjax.plan.estimate import PER_EXAMPLES, Plan, make_plan, run_steps, size
from rcjax.plan.programs import (
    PLAN_STEPS,
    Compiled,
    PlanError,
    Setting,
    compile_accumulate,
    compile_zeros,
    prepare_setting,
)
from rcjax.plan.search import ROOM, Found, search
from rcjax.plan.topology import Topology
from rcjax.progress import say
from rcjax.train import executables
from rcjax.workdir import write_json

EFFORTS = ("full", "fast")
# Share of a GPU's memory that JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
GPU_SHARE = 0.75


def plan(
    config: ConfigDict,
    name: str,
    topology: Topology,
    *,
    effort: str = "full",
    searched: bool = False,
    directory: str | None = None,
    output: str | None = None,
) -> None:
    """Prints a plan.

    Args:
      name: of the config, for people.
      topology: after ``topology.prepare``.
      effort: ``fast`` compiles without most optimisations.
      searched: look for the best rows, remat and mesh instead of those of ``config``.
      directory: gets the compiled programs (``rcjax.train.executables``).
      output: file that gets the figures as JSON.

    Raises:
      ValueError: names the flag or field.
    """
    if searched and topology.chip is None:
        raise PlanError(f"--search compares times, and nothing is known of the time of {topology.name}")
    if directory and Path(directory).exists():
        raise PlanError(f"--save={directory} exists already; name a directory that does not")
    steps = run_steps(config)
    if directory and steps is None:
        raise PlanError(
            "--save needs the number of optimizer steps, since the learning rate follows from it; give "
            "--config.train.steps=N or --config.data.train=DIR"
        )
    # A search asks for many compilations, and for no more of each than its memory and what it sends.
    jax.config.update("jax_optimization_level", "O0" if effort == "fast" or searched else "UNKNOWN")
    if searched:
        found = search(config, topology, on_try=lambda tried: say(tried.line()))
        print(search_text(found, name))
        figures = [tried.plan.to_json() for tried in found if tried.plan is not None]
    else:
        setting = prepare_setting(config, topology, total_steps=steps or PLAN_STEPS, own=directory is not None)
        made = make_plan(setting, steps)
        print(plan_text(made, name, effort))
        figures = made.to_json() | {"effort": effort}
        if directory:
            save(setting, made, Path(directory), steps)
            say(f"programs: {directory}; train with --mode=train --executable={directory}")
    if output:
        write_json(Path(output), figures)


def save(setting: Setting, made: Plan, directory: Path, steps: int) -> None:
    """Compiles what a run needs besides, and writes all of it.

    Raises:
      PlanError: a program is refused.
    """
    programs = {"zeros": compile_zeros(setting), "update": made.update}
    for width in setting.widths():
        microbatch = setting.microbatch(width)
        first = width == setting.config.packing.row_length
        compiled = made.accumulate if first else compile_accumulate(setting, width)
        programs[executables.accumulate_name(microbatch)] = compiled
    for compiled in programs.values():
        if compiled.refused:
            raise PlanError(f"nothing is saved, since it would not run: {compiled.refused}")
    fields = executables.origin(setting.config, setting.program, steps)
    executables.save(directory, fields, {name: compiled.executable for name, compiled in programs.items()})


def plan_text(plan: Plan, name: str, effort: str) -> str:
    """The report of one plan."""
    setting, config = plan.setting, plan.setting.config
    seconds = plan.accumulate.seconds + plan.update.seconds
    lines = [
        f"{name}: {setting.program.model.num_params:,} parameters on {setting.topology.name}, "
        f"{setting.topology.size} devices ({describe_mesh(setting)})",
        f"rows of {config.packing.row_length:,} slots, {config.packing.rows_per_device} a device; compute in "
        f"{config.train.compute_dtype}, remat {config.train.remat}, attention {setting.program.loss.attention}; "
        f"compiled with --effort={effort} in {seconds:.0f} s",
        "",
        *memory_lines(plan),
        "",
        *sent_lines(plan),
        "",
        *time_lines(plan),
        "",
        verdict(plan),
    ]
    return "\n".join(lines)


def describe_mesh(setting: Setting) -> str:
    """Axes that split something."""
    return " ".join(f"{axis}={size}" for axis, size in setting.mesh.shape.items() if size > 1) or "one device"


def memory_lines(plan: Plan) -> list[str]:
    """What lies in a device's memory."""
    lines = [f"{'of each device':<46}{'bytes':>12}"]
    lines += [f"{what:<46}{size(amount):>12}" for what, amount in plan.memory.held.items()]
    lines.append(f"{'activations (temporaries)':<46}{size(plan.memory.activations):>12}")
    for program in (plan.accumulate, plan.update):
        lines.append(f"{'peak of ' + program.name + _beside(program):<46}{size(program.in_all):>12}")
    return lines


def _beside(program: Compiled) -> str:
    return f", with {size(program.beside)} beside it" if program.beside else ""


def sent_lines(plan: Plan) -> list[str]:
    """What each device sends."""
    sent = plan.sent()
    if not sent:
        return ["devices send each other nothing" if plan.fits is not False else "what devices send is not known"]
    lines = [f"{'sent by each device':<26}{'times':>10}{'a microbatch':>14}{'a step':>14}"]
    lines += [f"{kind:<26}{count:>10,}{size(each):>14}{size(total):>14}" for kind, (count, each, total) in sent.items()]
    return lines


def time_lines(plan: Plan) -> list[str]:
    """FLOPs, times and chip-hours."""
    load = plan.load
    lines = [
        f"a step: {load.examples:,} examples of {load.views} x {load.length:,} slots, {load.tokens:,} tokens in "
        f"{load.microbatches:,} microbatches; {plan.model_flops:.3e} model FLOPs"
    ]
    if plan.microbatch is None or plan.accumulate.refused:
        return [
            *lines,
            "no estimate of time: " + ("it does not run" if plan.microbatch else "not the chips' own program"),
        ]
    lines.append(f"{'at least, seconds':<26}{'compute':>10}{'memory':>10}{'wire':>10}")
    for what, times in (("a microbatch", plan.microbatch), ("the optimizer", plan.optimizer)):
        lines.append(f"{what:<26}{times.compute:>10.3f}{times.memory:>10.3f}{times.wire:>10.3f}")
    bound, sum_ = plan.seconds, plan.seconds_one_by_one
    each = PER_EXAMPLES / load.examples
    lines += [
        f"{bound:.1f} s a step if all overlaps ({plan.microbatch.binding} binds), utilisation "
        f"{plan.utilisation(bound):.1%}; {sum_:.1f} s if nothing does, {plan.utilisation(sum_):.1%}",
        f"chip-hours, at least: {plan.chip_hours(1):.2f} a step, {plan.chip_hours(each):,.0f} per {PER_EXAMPLES:,} "
        "examples" + _run(plan),
    ]
    return lines


def _run(plan: Plan) -> str:
    if plan.run_steps is None:
        return " (the run's length is not known: no config.data.train)"
    days = plan.run_steps * plan.seconds / 86400
    return f", {plan.chip_hours(plan.run_steps):,.0f} for the run of {plan.run_steps:,} steps ({days:.2f} days)"


def verdict(plan: Plan) -> str:
    """One line: fits, or does not fit."""
    if refused := plan.accumulate.refused or plan.update.refused:
        beside = max(plan.accumulate.beside, plan.update.beside)
        return f"does not fit: {refused} {size(beside)} would lie beside it." if beside else f"does not fit: {refused}"
    if plan.fits is None:
        return f"no verdict: {plan.setting.topology.name} has no memory of its own"
    text = "fits" if plan.fits else "does not fit"
    line = f"{text}: {size(plan.memory.peak)} of {size(plan.memory.hbm)}, {plan.share:.1%}"
    if plan.fits and plan.setting.topology.platform == "gpu" and plan.share > GPU_SHARE:
        line += f"; JAX takes {GPU_SHARE:.0%} unless XLA_PYTHON_CLIENT_MEM_FRACTION={min(0.97, plan.share + 0.03):.2f}"
    return line


def search_text(found: list[Found], name: str) -> str:
    """The table of a search, and the flags of its winner."""
    lines = [f"{name}: what was compiled, best first", "", Found.HEADER]
    tried = [one for one in found if one.plan is not None]
    tried.sort(key=lambda one: (not one.fits, one.seconds_a_token if one.fits else 0.0))
    lines += [one.line() for one in tried]
    pruned = len(found) - len(tried)
    lines += ["", f"{pruned} more were not compiled: they can not fit, or can not be quicker than the best."]
    if not tried or not tried[0].fits:
        lines.append(f"does not fit: nothing does, with {1 - ROOM:.0%} of memory left over; take more or larger chips")
        return "\n".join(lines)
    best = tried[0].plan
    return "\n".join(
        [*lines, "", *time_lines(best), verdict(best), "", "flags: " + " ".join(tried[0].candidate.flags())]
    )
