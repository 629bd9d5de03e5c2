"""The build's per-problem function as an Apache Beam pipeline: direct runner here, Flink, Spark, Dataflow elsewhere.

A pipeline writes its results beside the journal, which takes them up when it is done: what an earlier run has finished
is not worked on again. The directory must be one that the workers can write, as it is for any runner on one machine
and for a shared file system.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_gen.job import Done, Job, Setup
from data_gen.parallel import Process
from data_gen.statistics import BuildError

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
except ImportError:
    beam = None


def run(
    setup: Setup, jobs: Sequence[Job], options: Sequence[str], directory: os.PathLike[str]
) -> Iterator[tuple[int, Done]]:
    """Runs ``jobs`` as a pipeline; yields (number of the job, what came of it) when it is done.

    Args:
      options: Beam's own flags.
      directory: the journal's; the pipeline's output goes into a directory below it.

    Raises:
      BuildError: Beam is not installed, or the pipeline failed.
    """
    if beam is None:
        raise BuildError("--runner=beam needs Apache Beam; pip install -r requirements-beam.txt")
    place = Path(directory).absolute() / "beam"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    flags = PipelineOptions(list(options), save_main_session=False)
    try:
        with beam.Pipeline(options=flags) as pipeline:
            (
                pipeline
                | "problems" >> beam.Create([(number, pickle.dumps(job)) for number, job in enumerate(jobs)])
                | "spread" >> beam.Reshuffle()
                | "work" >> beam.ParDo(Work(pickle.dumps(setup)))
                | "write" >> beam.io.WriteToText(str(place / "done"), file_name_suffix=".jsonl")
            )
    except Exception as error:  # the runners raise kinds of their own
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BuildError(f"the Beam pipeline failed ({said[:300]}); see --beam-options") from error
    for path in sorted(place.glob("done*.jsonl")):
        with open(path, encoding="utf-8") as file:
            for line in file:
                values: dict[str, Any] = json.loads(line)
                yield values.pop("number"), Done.from_json(values)


class Work(beam.DoFn if beam else object):
    """``job.work`` in a process of its own, as ``--runner=local`` has it: the same hash seed, so the same records."""

    def __init__(self, setup: bytes):
        self._setup = setup
        self._process: Process | None = None

    def setup(self) -> None:
        """Starts the process, with sandbox and teachers."""
        self._process = Process("data_gen.job:worker", pickle.loads(self._setup))

    def process(self, item: tuple[int, bytes]) -> Iterator[str]:
        """One problem."""
        number, job = item
        (done,) = self._process.call([pickle.loads(job)])
        yield json.dumps({"number": number, **done.to_json()})

    def teardown(self) -> None:
        """Ends it."""
        if self._process is not None:
            self._process.close()
            self._process = None
