"""The Beam runner makes the same records, byte for byte, and takes up what an earlier run has done."""

import pytest

from data_gen.build import BuildError, build, family_problems
from data_gen.journal import Journal


def test_without_beam_it_says_what_to_install(tmp_path, monkeypatch):
    from data_gen import beam

    monkeypatch.setattr(beam, "beam", None)
    with pytest.raises(BuildError, match=r"--runner=beam needs Apache Beam; pip install -r requirements-beam\.txt"):
        build(family_problems(3, 0, workers=1), tmp_path / "out", runner="beam")


def test_same_records_byte_for_byte_and_resumed(tmp_path):
    pytest.importorskip("apache_beam", reason="Beam is optional: pip install -r requirements-beam.txt")
    problems = family_problems(30, 7, workers=1)
    build(problems, tmp_path / "local", seed=7, heldout=3, workers=1)

    class Stop(Exception):
        pass

    original, noted = Journal.add, []

    def add(self, job, done):
        if len(noted) == 5:
            raise Stop
        original(self, job, done)
        noted.append(job)

    Journal.add = add
    try:
        with pytest.raises(Stop):
            build(problems, tmp_path / "beam", seed=7, heldout=3, workers=1)
    finally:
        Journal.add = original
    statistics = build(problems, tmp_path / "beam", seed=7, heldout=3, runner="beam")
    assert statistics.examples["reflection"] >= 20
    for path in sorted((tmp_path / "local").glob("*.tfrecord*")):
        assert path.read_bytes() == (tmp_path / "beam" / path.name).read_bytes()
    with pytest.raises(BuildError, match=r"the Beam pipeline failed \(.*see --beam-options"):
        build(problems, tmp_path / "no", runner="beam", beam_options=["--runner=NoSuchRunner"])
