"""Calls a function of a program that nobody has read on many inputs, and judges what it returns elsewhere.

Three processes beside this one, none of which has what it could misuse:

    zygote and its children   run programs, hold inputs; no expected output is in their memory (``isolated/calls.py``)
    judge                     decodes outputs and compares; no program runs in it (``isolated/output_judge.py``)
    here                      holds the expected outputs, and never decodes what a program sent
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import fcntl
import json
import marshal
import os
import pickle
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_gen.sandbox import WORK_BYTES, Limits, SandboxError

OUTPUT, FOREIGN, COMPARED, RAISED, TRACEBACK, LOADED, LARGE = range(7)  # frames, as in isolated/calls.py
_WORKER = Path(__file__).with_name("calls_worker.py")
_JUDGE = Path(__file__).parent / "isolated" / "output_judge.py"
_HEADER = struct.Struct("<BI")
_LARGEST = 256 << 20
_START = 60.0
_GRACE = 10.0
_CHUNK = 1 << 20  # also the size of a pipe
_NAP = 0.004
_PYTHON = ("-S", "-s", "-P", "-B")
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "PATH": os.defpath, "LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"}
_ENVIRONMENT["LD_BIND_NOW"] = "1"  # symbols that only a child uses would be looked up by every child


class CallsLost(RuntimeError):
    """The worker ended in mid-run, through no fault of the program that can be told."""


class OutOfTime(Exception):
    """The time of a run is up."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One program and what it is called on.

    Attributes:
      source: the program.
      task: key of the worker's inputs.
      suites: "base", "plus", or both, whose inputs are taken one after the other.
      entry_point: name of the function.
      rule: of ``isolated/evalplus_rules.py``.
      first: the first input to call it on.
      seconds: time limit of each input from there on; the calls end with them.
      memory_mb: address space that the program may take, MiB.
      record: the program is the canonical one: send its time before each output.
    """

    source: str
    task: str
    suites: Sequence[str]
    entry_point: str
    rule: str
    seconds: Sequence[float]
    memory_mb: int
    record: bool = False
    first: int = 0


def packages() -> list[str]:
    """Directories of installed packages, those that this interpreter has on its path."""
    return [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]


def packed(inputs: Mapping[str, Mapping[str, Sequence[Any]]]) -> bytes:
    """Task to suite to inputs, each a sequence of arguments, for ``CallWorker``."""
    return pickle.dumps(
        {task: {name: pickle.dumps(list(them), 5) for name, them in of.items()} for task, of in inputs.items()}, 5
    )


class CallWorker:
    """One zygote; runs one program at a time."""

    def __init__(self, inputs: bytes, plain: bool = False):
        """Starts it.

        Args:
          inputs: by ``packed``.
          plain: for programs that import nothing but modules of Python itself, none of them one from which evalplus
            takes something away (``rcjax/evaluation/stateless.py``). Others find numpy loaded, as they do in evalplus,
            which makes a run twice as dear.

        Raises:
          SandboxError: the interpreter does not start.
        """
        self._inputs, self._plain = inputs, plain
        self._open()

    def _open(self) -> None:
        self._base = tempfile.mkdtemp(prefix="calls-")
        os.chmod(self._base, 0o711)
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        options = {"packages": packages(), "readable": packages(), "work_bytes": WORK_BYTES}
        options["plain"] = self._plain
        self._process = subprocess.Popen(
            [sys.executable, *_PYTHON, str(_WORKER), str(theirs.fileno()), self._base, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
        theirs.close()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(self._inputs)
            self._process.stdin.close()
        self._orders.settimeout(_START)
        try:
            hello = self._orders.recv(1 << 16)
        except TimeoutError:
            hello = b""
        if not hello:
            self._process.kill()
            said = self._process.stderr.read().decode("utf-8", "replace").strip().splitlines()
            self.close()
            raise SandboxError(f"the sandbox's interpreter did not start: {said[-1] if said else 'no answer'}")
        self.reached = json.loads(hello)

    def run(self, call: Call, seconds: float) -> Iterator[tuple[int, bytearray]]:
        """Frames (kind, content) that the child sends, until it ends. Closing the iterator ends the child.

        Args:
          call: what to run.
          seconds: wall time of all of it, unless ``extend`` says otherwise meanwhile.

        Raises:
          OutOfTime: they are over.
          CallsLost: the worker is gone; it was replaced, so the next run may be tried.
        """
        self.extend(seconds)
        self._control, control = socket.socketpair()
        data, data_write = os.pipe()
        with contextlib.suppress(OSError):
            fcntl.fcntl(data, fcntl.F_SETPIPE_SZ, _CHUNK)
        lost = False
        try:
            try:
                socket.send_fds(self._orders, [b"F"], [control.fileno(), data_write])
                control.close()
                os.close(data_write)
                self._control.sendall(_framed(self._request(call)))
                yield from _frames(data, lambda: self._deadline)
            except OSError as error:
                lost = True
                raise CallsLost(str(error)) from error
        finally:
            self._control.close()
            os.close(data)
            if not self._end_child() or lost:
                self.close()
                self._open()

    def extend(self, seconds: float) -> None:
        """The run may take so long from now on."""
        self._deadline = time.monotonic() + seconds

    def _request(self, call: Call) -> dict:
        # Time is kept here and by a timer for each input; limits of the sandbox stand behind that.
        total = sum(call.seconds) if not call.record else 1e6
        limits = Limits(
            cpu_seconds=4 * min(total, 1e6) + 300,
            wall_seconds=1e6,
            memory_mb=call.memory_mb,
            open_files=256,
            processes=64,
        )
        usual = min(call.seconds, default=0.0)  # of most inputs: only the others are sent
        longer = {index: limit for index, limit in enumerate(call.seconds) if limit != usual}
        head = {field.name: getattr(call, field.name) for field in dataclasses.fields(call) if field.name != "seconds"}
        return {
            **head,
            "seconds": usual,
            "count": len(call.seconds),
            "longer": longer,
            "limits": dataclasses.asdict(limits),
        }

    def hand_in(self, expected: bytes, atol: float) -> None:
        """Answers a frame FOREIGN.

        Raises:
          OSError: nobody takes it, while the run may go on.
        """
        self._control.settimeout(max(0.01, self._deadline - time.monotonic()))
        self._control.sendall(_framed({"expected": base64.b64encode(expected).decode(), "atol": atol}))

    def _end_child(self) -> bool:
        """Kills the child unless it ended, and takes in how it did; False if the zygote is gone."""
        try:
            self._orders.settimeout(_GRACE)
            self._orders.send(b"K")
            ended = marshal.loads(self._orders.recv(1 << 16))
        except (OSError, EOFError, ValueError):
            return False
        return "lost" not in ended

    def close(self) -> None:
        """Ends the zygote and whatever runs in it."""
        self._orders.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stderr.close()
        shutil.rmtree(self._base, ignore_errors=True)


def _framed(message: Any) -> bytes:
    body = json.dumps(message).encode()
    return struct.pack("<I", len(body)) + body


def _frames(fd: int, deadline: Callable[[], float]) -> Iterator[tuple[int, bytearray]]:
    """Frames from a pipe until its end, or until the ``deadline`` of ``time.monotonic``.

    A reader that waits in ``poll`` is woken by every small write, which costs both sides more than the write itself. So
    it sleeps a tenth of the time that the run has taken, and takes in what has come meanwhile. Not so in the middle of
    a frame: one that is larger than the pipe holds the program up until it is read.
    """
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    started = time.monotonic()

    def wait() -> None:
        left = deadline() - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise OutOfTime

    buffer, at = bytearray(), 0
    while True:
        while len(buffer) - at >= _HEADER.size:
            kind, size = _HEADER.unpack_from(buffer, at)
            if size > _LARGEST:
                raise OutOfTime  # no frame of ours: a program that writes into the pipe itself
            at += _HEADER.size
            content = buffer[at : at + size]
            filled = len(content)
            at += filled
            while filled < size:
                if filled == len(content):  # memory for as much again as has come: a header may lie
                    content += bytes(min(size - filled, max(filled, _CHUNK)))
                wait()
                with memoryview(content) as place:
                    part = os.readv(fd, [place[filled:]])
                if not part:
                    return
                filled += part
            yield kind, content
        del buffer[:at]
        at = 0
        wait()
        part = os.read(fd, _CHUNK)
        if not part:
            return
        buffer += part
        if len(part) < _CHUNK // 4:
            elapsed = time.monotonic() - started
            if elapsed > 0.002:
                time.sleep(min(_NAP, elapsed / 10))


class Judge:
    """The judging process; started when it is first asked, and again when it was lost."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def compare(self, items: Sequence[tuple], seconds: float) -> list[tuple[bool, float, str]]:
        """For each (rule, pickled arguments, output, expected output, atol): (right, next atol, what was compared).

        Raises:
          OutOfTime: it takes longer, or the judge was lost over it.
        """
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, *_PYTHON, str(_JUDGE), json.dumps(packages())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        body = pickle.dumps(items, 5)
        deadline = time.monotonic() + seconds + _GRACE
        try:
            self._process.stdin.write(struct.pack("<I", len(body)) + body)
            self._process.stdin.flush()
            size = struct.unpack("<I", self._exactly(4, deadline))[0]
            return [tuple(verdict) for verdict in json.loads(self._exactly(size, deadline))]
        except (OSError, EOFError, ValueError):
            self.close()
            raise OutOfTime from None

    def _exactly(self, count: int, deadline: float) -> bytes:
        data = b""
        poll = select.poll()
        poll.register(self._process.stdout, select.POLLIN)
        while len(data) < count:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise EOFError
            part = os.read(self._process.stdout.fileno(), count - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process = None
