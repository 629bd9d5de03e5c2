"""Frames that a child of ``isolated/calls.py`` sends: a byte of kind, four of length, the content."""

from __future__ import annotations

import bisect
import os
import select
import struct
import time
from collections.abc import Iterator, Sequence

OUTPUT, FOREIGN, COMPARED, RAISED, TRACEBACK, LOADED, LARGE = range(7)  # as in isolated/calls.py
SAME = 7  # told by the reader: as many outputs as the content says came as they were awaited
HEADER = struct.Struct("<BI")
CHUNK = 1 << 20  # also the size of a pipe
_LARGEST = 256 << 20
_NAP = 0.004


class OutOfTime(Exception):
    """The time of a run is up."""


class FrameReader:
    """Reads frames from a pipe until its end, or until a deadline.

    A reader that waits in ``poll`` is woken by every small write, which costs both sides more than the write itself. So
    it sleeps a tenth of the time that the run has taken, and takes in what has come meanwhile. Not so in the middle of
    a frame: one that is larger than the pipe holds the program up until it is read.

    Attributes:
      deadline: of ``time.monotonic``.
    """

    def __init__(self, fd: int, deadline: float):
        self.fd, self.deadline = fd, deadline
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._started = time.monotonic()
        self._awaited: tuple[memoryview, Sequence[int]] | None = None

    def expect(self, frames: memoryview, ends: Sequence[int]) -> None:
        """What will probably come next. As long as it does it is compared as one block, and told of by numbers.

        Args:
          frames: of kind OUTPUT, as bytes, one after the other.
          ends: where each of them ends.
        """
        self._awaited = frames, ends

    def frames(self) -> Iterator[tuple[int, bytearray | int]]:
        """Kind and content of each frame; the number of outputs with ``SAME``.

        Raises:
          OutOfTime: the deadline has passed.
        """
        buffer, at = bytearray(), 0
        while True:
            if self._awaited is not None:
                buffer = yield from self._as_awaited(buffer[at:])
                if buffer is None:
                    return
                at = 0
            while self._awaited is None and len(buffer) - at >= HEADER.size:
                kind, size = HEADER.unpack_from(buffer, at)
                if size > _LARGEST or kind >= SAME:
                    raise OutOfTime  # no frame of ours: a program that writes into the pipe itself
                at += HEADER.size
                content = buffer[at : at + size]
                filled = len(content)
                at += filled
                while filled < size:
                    if filled == len(content):  # memory for as much again as has come: a header may lie
                        content += bytes(min(size - filled, max(filled, CHUNK)))
                    self._wait()
                    with memoryview(content) as place:
                        part = os.readv(self.fd, [place[filled:]])
                    if not part:
                        return
                    filled += part
                yield kind, content
            if self._awaited is None:
                part = self._read()
                if not part:
                    return
                buffer, at = buffer[at:] + part, 0

    def _as_awaited(self, part: bytearray) -> Iterator[tuple[int, int]]:
        """Takes what comes as it was awaited, ``part`` first. Returns what came else, from the beginning of a frame
        on, and None at the end of the stream."""
        (frames, ends), self._awaited = self._awaited, None
        at = told = 0
        while True:
            if len(part) > len(frames) - at:
                part, rest = part[: len(frames) - at], part[len(frames) - at :]
            else:
                rest = bytearray()
            if part != frames[at : at + len(part)]:  # a bytearray on the left: compared as memory, not item by item
                return bytearray(frames[ends[told - 1] if told else 0 : at]) + part + rest
            at += len(part)
            count = bisect.bisect_right(ends, at) - told
            if count:
                told += count
                yield SAME, count
            if at == len(frames):
                return rest
            part = self._read()
            if not part:
                return None

    def _read(self) -> bytearray:
        """What has come, and a nap if that is little; empty at the end of the stream."""
        self._wait()
        part = os.read(self.fd, CHUNK)
        if part and len(part) < CHUNK // 4:
            elapsed = time.monotonic() - self._started
            if elapsed > 0.002:
                time.sleep(min(_NAP, elapsed / 10))
        return bytearray(part)

    def _wait(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0 or not self._poll.poll(left * 1000):
            raise OutOfTime
