"""Frames are told as they were sent, however they are cut on the way and whatever was awaited."""

import os
import tempfile
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_gen import call_sandbox
from data_gen.call_frames import CHUNK, HEADER, LOADED, OUTPUT, SAME, FrameReader, OutOfTime

CONTENTS = st.lists(st.binary(max_size=12), max_size=8)


def framed(contents, kind=OUTPUT):
    return b"".join(HEADER.pack(kind, len(content)) + content for content in contents)


def ends_of(contents):
    ends, at = [], 0
    for content in contents:
        at += HEADER.size + len(content)
        ends.append(at)
    return ends


def read(sent, cuts, suites):
    """What a reader tells of the bytes ``sent``, in pieces that end at ``cuts``; of each of ``suites``, what is awaited
    when it is its turn."""
    source, sink = os.pipe()

    def send():
        with open(sink, "wb", buffering=0) as file:
            for first, last in zip([0, *cuts], [*cuts, len(sent)], strict=True):
                view = memoryview(sent)[first:last]
                while view:
                    view = view[file.write(view) :]

    thread = threading.Thread(target=send)
    thread.start()
    reader, told = FrameReader(source, time.monotonic() + 20), []
    suites = list(suites)
    try:
        for kind, content in reader.frames():
            told.append((kind, content if kind == SAME else bytes(content)))
            if kind == LOADED and suites:
                awaited = suites.pop(0)
                reader.expect(memoryview(framed(awaited)), ends_of(awaited))
    finally:
        os.close(source)
        thread.join()
    return told


@settings(max_examples=200, deadline=None)
@given(CONTENTS, CONTENTS, CONTENTS, CONTENTS, st.data())
def test_awaited_or_not_outputs_are_the_same(first, second, awaited_first, awaited_second, data):
    """Two suites, each behind a frame of its own; what is awaited has a beginning in common with them, or all."""
    awaited_first = data.draw(st.sampled_from((first, first[:2] + awaited_first, awaited_first)))
    awaited_second = data.draw(st.sampled_from((second, second + awaited_second, second[:1])))
    mark = HEADER.pack(LOADED, 0)
    sent = mark + framed(first) + mark + framed(second)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=4)))
    outputs, places = [], iter((awaited_first, awaited_second))
    for kind, content in read(sent, cuts, (awaited_first, awaited_second)):
        if kind == LOADED:
            outputs.append([])
            awaited = next(places)
        elif kind == SAME:
            assert content > 0
            outputs[-1] += awaited[len(outputs[-1]) : len(outputs[-1]) + content]
        else:
            assert kind == OUTPUT
            outputs[-1].append(content)
    assert outputs == [first, second]


def test_all_that_is_awaited_is_told_by_numbers_alone():
    contents = [b"a", b"", b"bc" * CHUNK, b"d"]  # one is larger than the pipe
    told = read(HEADER.pack(LOADED, 0) + framed(contents), [], [contents])
    assert {kind for kind, _ in told[1:]} == {SAME}
    assert sum(count for _, count in told[1:]) == 4


def test_what_differs_late_in_a_large_frame_is_told_whole():
    content = b"x" * (3 * CHUNK)
    told = read(HEADER.pack(LOADED, 0) + framed([b"a", content[:-1] + b"y"]), [], [[b"a", content]])
    assert told[1:] == [(SAME, 1), (OUTPUT, content[:-1] + b"y")]


@pytest.mark.parametrize(
    "header", [HEADER.pack(SAME, 1) + b"1", HEADER.pack(200, 1) + b"1", HEADER.pack(OUTPUT, 1 << 30)]
)
def test_no_frame_of_a_child_ends_the_run(header):
    with pytest.raises(OutOfTime):
        read(header, [], [])


def test_the_deadline_may_be_moved():
    source, sink = os.pipe()
    reader = FrameReader(source, time.monotonic() + 0.05)
    with pytest.raises(OutOfTime):
        next(reader.frames())
    reader.deadline = time.monotonic() + 20
    os.write(sink, framed([b"a"]))
    assert next(reader.frames()) == (OUTPUT, b"a")
    os.close(source)
    os.close(sink)


def test_workers_that_nobody_took_are_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with call_sandbox.started_ahead(2):
        processes = [zygote.process for zygote in call_sandbox._ahead]
        worker = call_sandbox.CallWorker(call_sandbox.packed({}), plain=True)
        assert worker._zygote.process in processes
        assert len(list(tmp_path.iterdir())) == 2
        worker.close()
    assert len(processes) == 2
    assert all(process.returncode is not None for process in processes)
    assert not list(tmp_path.iterdir())
