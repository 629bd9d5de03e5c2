"""A cache file of expected outputs that was cut short or altered anywhere is noticed."""

from __future__ import annotations

import json
import struct

import pytest

from rcjax.evaluation import expected
from rcjax.evaluation.benchmarks import load_benchmark
from tests.evaluation.small_benchmarks import HUMANEVAL_PLUS, write_lines
from tests.evaluation.test_scoring import no_progress


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("expected")
    benchmark = load_benchmark("humaneval+", write_lines(directory / "h.jsonl", HUMANEVAL_PLUS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RCJAX_CACHE", str(directory / "cache"))
        yield expected.expected_outputs(benchmark, progress=no_progress).path, benchmark


def test_a_file_that_was_cut_short_is_none(written, tmp_path):
    """Wherever: in its magic, its head, its columns, its outputs."""
    content = written[0].read_bytes()
    cut = tmp_path / "cut.outputs"
    for length in {0, 5, len(content) - 1, *range(8, len(content), max(1, len(content) // 60))}:
        cut.write_bytes(content[:length])
        with pytest.raises((ValueError, KeyError, TypeError, struct.error)):
            expected.Expected(cut)


def test_columns_that_were_altered_are_computed_again(written, monkeypatch):
    path, benchmark = written
    content = bytearray(path.read_bytes())
    size = struct.unpack_from("<I", content, 8)[0]
    columns = 12 + size
    assert json.loads(content[12:columns])["inputs"] > 0
    content[columns + 6] ^= 1  # in the time of the first input
    path.write_bytes(content)
    with pytest.raises(ValueError, match="altered"):
        expected.Expected(path)
    again = expected.expected_outputs(benchmark, progress=no_progress)
    assert again.path == path
    expected.Expected(path)
