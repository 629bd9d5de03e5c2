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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_gen.call_frames import CHUNK, FrameReader, OutOfTime
from data_gen.sandbox import WORK_BYTES, Limits, SandboxError

_WORKER = Path(__file__).with_name("calls_worker.py")
_JUDGE = Path(__file__).parent / "isolated" / "output_judge.py"
_START = 60.0
_GRACE = 10.0
_PYTHON = ("-S", "-s", "-P", "-B")
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "PATH": os.defpath, "LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"}
_ENVIRONMENT["LD_BIND_NOW"] = "1"  # symbols that only a child uses would be looked up by every child
_ENVIRONMENT["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"  # large lists and strings in fewer page faults (glibc 2.35)


class CallsLost(RuntimeError):
    """The worker ended in mid-run, through no fault of the program that can be told."""


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
      stateless: the program can keep nothing from one call to the next, and reach neither signals nor streams.
    """

    source: str
    task: str
    suites: Sequence[str]
    entry_point: str
    rule: str
    seconds: Sequence[float]
    memory_mb: int
    record: bool = False
    stateless: bool = False
    first: int = 0


def packages() -> list[str]:
    """Directories of installed packages, those that this interpreter has on its path."""
    return [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]


def packed(inputs: Mapping[str, Mapping[str, Sequence[Any]]]) -> bytes:
    """Task to suite to inputs, each a sequence of arguments, for ``CallWorker``."""
    return pickle.dumps(
        {task: {name: pickle.dumps(list(them), 5) for name, them in of.items()} for task, of in inputs.items()}, 5
    )


class _Zygote:
    """The process behind a worker, with its directory; it waits for its inputs."""

    def __init__(self, plain: bool):
        self.plain = plain
        self.base = tempfile.mkdtemp(prefix="calls-")
        os.chmod(self.base, 0o711)
        self.orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        options = {"packages": packages(), "readable": packages(), "work_bytes": WORK_BYTES, "plain": plain}
        self.process = subprocess.Popen(
            [sys.executable, *_PYTHON, str(_WORKER), str(theirs.fileno()), self.base, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
        theirs.close()

    def load(self, inputs: bytes) -> dict:
        """Hands it its inputs; what isolation it reached.

        Raises:
          SandboxError: the interpreter did not start.
        """
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(inputs)
            self.process.stdin.close()
        self.orders.settimeout(_START)
        try:
            hello = self.orders.recv(1 << 16)
        except TimeoutError:
            hello = b""
        if not hello:
            self.process.kill()
            said = self.process.stderr.read().decode("utf-8", "replace").strip().splitlines()
            self.close()
            raise SandboxError(f"the sandbox's interpreter did not start: {said[-1] if said else 'no answer'}")
        return json.loads(hello)

    def close(self) -> None:
        """Ends it and whatever runs in it."""
        self.orders.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stderr.close()
        shutil.rmtree(self.base, ignore_errors=True)


_ahead: list[_Zygote] = []


@contextlib.contextmanager
def started_ahead(count: int) -> Iterator[None]:
    """Starts the processes of ``count`` plain workers, which those that are made inside take: their interpreters get
    ready while the inputs are still being read."""
    _ahead.extend(_Zygote(plain=True) for _ in range(count))
    try:
        yield
    finally:
        while _ahead:
            _ahead.pop().close()


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
        try:
            self._zygote = _ahead.pop() if self._plain else _Zygote(plain=False)
        except IndexError:
            self._zygote = _Zygote(plain=True)
        self.reached = self._zygote.load(self._inputs)

    def run(self, call: Call, seconds: float) -> Iterator[tuple[int, bytearray | int]]:
        """Frames (kind, content) that the child sends, until it ends (``call_frames.py``). Closing the iterator ends
        the child.

        Args:
          call: what to run.
          seconds: wall time of all of it, unless ``extend`` says otherwise meanwhile.

        Raises:
          OutOfTime: they are over.
          CallsLost: the worker is gone; it was replaced, so the next run may be tried.
        """
        self._control, control = socket.socketpair()
        data, data_write = os.pipe()
        self.reader = FrameReader(data, time.monotonic() + seconds)
        with contextlib.suppress(OSError):
            fcntl.fcntl(data, fcntl.F_SETPIPE_SZ, CHUNK)
        lost = False
        try:
            try:
                socket.send_fds(self._zygote.orders, [b"F"], [control.fileno(), data_write])
                control.close()
                os.close(data_write)
                self._control.sendall(_framed(self._request(call)))
                yield from self.reader.frames()
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
        self.reader.deadline = time.monotonic() + seconds

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
        longer = {}
        if max(call.seconds, default=0.0) != usual:
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
        self._control.settimeout(max(0.01, self.reader.deadline - time.monotonic()))
        self._control.sendall(_framed({"expected": base64.b64encode(expected).decode(), "atol": atol}))

    def _end_child(self) -> bool:
        """Kills the child unless it ended, and takes in how it did; False if the zygote is gone."""
        try:
            orders = self._zygote.orders
            orders.settimeout(_GRACE)
            orders.send(b"K")
            ended = marshal.loads(orders.recv(1 << 16))
        except (OSError, EOFError, ValueError):
            return False
        return "lost" not in ended

    def close(self) -> None:
        """Ends the zygote and whatever runs in it."""
        self._zygote.close()


def _framed(message: Any) -> bytes:
    body = json.dumps(message).encode()
    return struct.pack("<I", len(body)) + body


class Judge:
    """The judging processes, without numpy and with it; each started when it is first needed, and again when it was
    lost."""

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen] = {}

    def compare(self, items: Sequence[tuple], seconds: float) -> list[tuple[bool, float, str]]:
        """For each (rule, pickled arguments, output, expected output, atol): (right, next atol, what was compared).

        Raises:
          OutOfTime: it takes longer, or the judge was lost over it.
        """
        verdicts = self._ask("plain", items, seconds)
        open_ones = [index for index, verdict in enumerate(verdicts) if verdict is None]
        if open_ones:
            answers = self._ask("numpy", [items[index] for index in open_ones], seconds)
            for index, verdict in zip(open_ones, answers, strict=True):
                verdicts[index] = verdict
        return [tuple(verdict) for verdict in verdicts]

    def _ask(self, kind: str, items: Sequence[tuple], seconds: float) -> list:
        if kind not in self._processes:
            self._processes[kind] = subprocess.Popen(
                [sys.executable, *_PYTHON, str(_JUDGE), json.dumps(packages()), kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        process, body = self._processes[kind], pickle.dumps(items, 5)
        deadline = time.monotonic() + seconds + _GRACE
        try:
            process.stdin.write(struct.pack("<I", len(body)) + body)
            process.stdin.flush()
            size = struct.unpack("<I", _exactly(process, 4, deadline))[0]
            return json.loads(_exactly(process, size, deadline))
        except (OSError, EOFError, ValueError):
            self.close()
            raise OutOfTime from None

    def close(self) -> None:
        """Ends the processes."""
        while self._processes:
            _, process = self._processes.popitem()
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


def _exactly(process: subprocess.Popen, count: int, deadline: float) -> bytes:
    data = b""
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    while len(data) < count:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise EOFError
        part = os.read(process.stdout.fileno(), count - len(data))
        if not part:
            raise EOFError
        data += part
    return data
