"""Where the problems are worked on: processes, threads around one teacher, or an Apache Beam pipeline.

All three do the same ``job.work`` and yield (number of the job, what came of it) as it is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from data_gen.job import Done, Job, Setup, work
from data_gen.parallel import completed_map, usable_cpus
from data_gen.sandbox import Sandbox
from data_gen.teachers import TeacherStop
from data_gen.teachers.choice import OFFLINE, make_teacher
from data_gen.verifiers.choice import make_verifiers

RUNNERS = ("local", "beam")


def run_local(
    setup: Setup,
    jobs: Sequence[Job],
    workers: int | None,
    spend: Callable[[Mapping[str, float]], None] = lambda usage: None,
    spent: float = 0.0,
) -> Iterator[tuple[int, Done]]:
    """Offline teachers in processes; a model's requests by threads that wait, programs in a shared sandbox.

    Args:
      spend: told of what every request cost, from any thread.
      spent: dollars that earlier runs of this build have cost.

    Raises:
      TeacherStop: the teacher can not go on; jobs that could still be finished were yielded before.
    """
    offline = [place for place, job in enumerate(jobs) if job.teacher in OFFLINE]
    if offline:
        own = dataclasses.replace(setup, teachers=tuple(name for name in setup.teachers if name in OFFLINE))
        mine = [jobs[place] for place in offline]
        for place, done in completed_map("data_gen.job:worker", own, mine, workers):
            yield offline[place], done
    asked = [place for place, job in enumerate(jobs) if job.teacher not in OFFLINE]
    if not asked:
        return
    with contextlib.ExitStack() as stack:
        teachers = {
            name: stack.enter_context(make_teacher(name, setup.templates, setup.options))
            for name in setup.teachers
            if name not in OFFLINE
        }
        for teacher in teachers.values():
            if hasattr(teacher, "account"):
                teacher.account(spend, spent)
        verifiers = make_verifiers(setup.verifiers, teachers, setup.seed)
        sandbox = stack.enter_context(Sandbox(workers or usable_cpus(), setup.limits))
        pool = stack.enter_context(ThreadPoolExecutor(setup.options.concurrency))
        following = iter(asked)
        running: dict[Future[Done], int] = {}
        stop: TeacherStop | None = None
        stopped = threading.Event()

        def do(job: Job) -> Done:
            if stopped.is_set():
                raise TeacherStop("stopped")
            return work(job, setup, teachers[job.teacher], sandbox, verifiers)

        try:
            while True:
                while stop is None and len(running) < setup.options.concurrency:
                    place = next(following, None)
                    if place is None:
                        break
                    running[pool.submit(do, jobs[place])] = place
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    place = running.pop(future)
                    try:
                        done = future.result()
                    except TeacherStop as error:
                        stop = stop or error  # the others may still end well
                        continue
                    yield place, done
        except BaseException:
            stopped.set()
            for teacher in teachers.values():
                if hasattr(teacher, "interrupt"):
                    teacher.interrupt()
            raise
        if stop is not None:
            raise stop


def run_beam(setup: Setup, jobs: Sequence[Job], options: Sequence[str], directory: os.PathLike[str]):
    """See ``data_gen.beam``."""
    from data_gen.beam import run  # late: an optional package, and a slow one

    return run(setup, jobs, options, directory)
