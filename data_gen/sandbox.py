"""Runs code that nobody has read, many times a second: a pool of forking interpreters with limits.

Each worker (``sandbox_worker.py``) has a zygote that forks a child per program, so no interpreter starts per attempt
and no state passes from one attempt to the next; tests are judged outside of the child. Programs of other languages run
in the same children: see ``languages.py``. ``Sandbox.isolation`` says in words what holds on this machine, and
docs/sandbox.md what that means.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import json
import os
import queue
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

_WORKER = Path(__file__).with_name("sandbox_worker.py")
_GRACE = 10.0  # seconds past the wall limit after which a worker counts as lost
_START = 30.0
REQUIRE = "RCJAX_REQUIRE_ISOLATION"
LOST = "Crashed: the program took its interpreter down\n"
WORK_BYTES = 256 << 20  # of all files of one program together, where its directory is a file system of its own
MEANS = ("bwrap", "namespaces", "limits")  # ways to isolate, the first that works is taken


class SandboxError(RuntimeError):
    """The sandbox can not work here at all; the message says why."""


@dataclasses.dataclass(frozen=True)
class Program:
    """Python code and what is run behind it, each test on lines of its own.

    Attributes:
      code: the program. It can not see ``tests``.
      tests: statements; assertions among them are judged outside of the program's process (see ``isolated/judge.py``).
      stdin: its standard input; None: empty. A program with a standard input and no tests may end by ``sys.exit(0)``.
    """

    code: str
    tests: tuple[str, ...] = ()
    stdin: str | None = None

    @property
    def source(self) -> str:
        """The file ``attempt.py``: line numbers in tracebacks count in it."""
        return "".join(self.parts)

    @property
    def parts(self) -> tuple[str, str]:
        """Code and tests as they stand in the file."""
        code = self.code if self.code.endswith("\n") or not self.code else self.code + "\n"
        return code, "".join(f"{test}\n" for test in self.tests)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command of a program in another language: to compile it, or to run it.

    Attributes:
      argv: absolute path of the program and its arguments; it runs in the private directory.
      limits: of this stage alone.
      error: ``Outcome.error`` where it ends with another status than 0.
      environment: variables besides PATH, HOME, TMPDIR and LC_ALL.
      stdin: its standard input.
      committed: ``memory_mb`` limits memory that is written to, not address space.
    """

    argv: tuple[str, ...]
    limits: Limits
    error: str
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stdin: str = ""
    committed: bool = False


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one program may use.

    Attributes:
      cpu_seconds: CPU time; fractions count.
      wall_seconds: time by the clock, for programs that wait.
      memory_mb: address space, MiB, the interpreter's own (about 20) included; of all processes together the memory
        in use.
      output_bytes: what is kept of stdout and stderr together.
      file_bytes: size of any file written.
      open_files: descriptors.
      processes: processes and threads; 1 allows no new one.
    """

    cpu_seconds: float = 2.0
    wall_seconds: float = 10.0
    memory_mb: int = 512
    output_bytes: int = 8192
    file_bytes: int = 1 << 20
    open_files: int = 64
    processes: int = 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"limit {field.name} is {getattr(self, field.name)}; it must be above 0")


class Verdict(enum.StrEnum):
    """How a program ended. Only PASSED means that its last line ran."""

    PASSED = "passed"
    FAILED = "failed"  # an exception, an assertion's among them
    TIMEOUT = "timeout"  # CPU or wall time
    MEMORY = "memory"
    CRASHED = "crashed"  # a signal, or it left before its tests


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of one program.

    Attributes:
      verdict: how it ended.
      feedback: its output and the traceback, without paths and addresses of this machine; "" if it was silent.
      error: class name of the exception, name of the signal, or "".
      seconds: wall time.
      stdout: what it wrote to its standard output, as it was.
      cut: whether output was left out because there was too much.
    """

    verdict: Verdict
    feedback: str
    error: str
    seconds: float
    stdout: str = ""
    cut: bool = False


class _Worker:
    """Parent's side of one zygote."""

    def __init__(self, options: Mapping[str, object]) -> None:
        self._base = tempfile.mkdtemp(prefix="attempts-")
        os.chmod(self._base, 0o711)  # a child of another user must pass through to its own directory
        request_read, self._requests = os.pipe()
        self._replies, reply_write = os.pipe()
        arguments = (str(request_read), str(reply_write), self._base, json.dumps(options))
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-s", "-P", "-B", str(_WORKER), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(request_read, reply_write),
            env={"PYTHONHASHSEED": "0", "PATH": os.defpath, "LC_ALL": "C.UTF-8", "LD_BIND_NOW": "1"},
            cwd="/",
            start_new_session=True,
        )
        os.close(request_read)
        os.close(reply_write)
        hello = self._receive(_START)
        if hello is None:
            self._process.kill()
            said = self._process.stderr.read().decode("utf-8", "replace").strip().splitlines()
            self.close()
            raise SandboxError(f"the sandbox's interpreter did not start: {said[-1] if said else 'no answer'}")
        self.reached = hello

    def run(self, request: Mapping[str, object], seconds: float) -> dict | None:
        """The reply, None if the worker was lost. ``seconds``: wall time that the request may take."""
        body = json.dumps(request).encode()
        try:
            data = memoryview(struct.pack("<I", len(body)) + body)
            while data:
                data = data[os.write(self._requests, data) :]
        except BrokenPipeError:
            return None
        reply = self._receive(seconds + _GRACE)
        if reply is None or reply["status"] == "lost":
            return None
        return reply

    def _receive(self, seconds: float) -> dict | None:
        data, size = b"", 4
        poll = select.poll()  # not select: a training process may well hold more than 1,024 descriptors
        poll.register(self._replies, select.POLLIN)
        while len(data) < size:
            if not poll.poll(seconds * 1000):
                return None
            part = os.read(self._replies, 1 << 20)  # nothing follows a reply before the next request
            if not part:
                return None
            data += part
            if len(data) >= 4:
                size = 4 + struct.unpack_from("<I", data)[0]
        return json.loads(data[4:])

    def close(self) -> None:
        for fd in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                os.close(fd)
        try:
            self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stderr.close()
        shutil.rmtree(self._base, ignore_errors=True)


def _outcome(reply: Mapping) -> Outcome:
    names = ("feedback", "error", "seconds", "stdout", "cut")
    return Outcome(Verdict(reply["status"]), **{name: reply[name] for name in names})


class Sandbox:
    """A pool of workers; use as a context manager. ``run`` and ``map`` may be called from several threads."""

    def __init__(
        self,
        workers: int | None = None,
        limits: Limits | None = None,
        *,
        require_isolation: bool | None = None,
        readable: Sequence[str | os.PathLike] = (),
        means: Sequence[str] = MEANS,
    ):
        """Starts the workers.

        Args:
          workers: number of zygotes, the number of usable CPUs if None.
          limits: of Python programs.
          require_isolation: refuse to work where something of the isolation is lacking; None: as the environment
            variable RCJAX_REQUIRE_ISOLATION says, which ``--require_isolation`` sets for all processes.
          readable: further paths that programs may read, beside the system's own.
          means: ways to isolate that may be used, in order.

        Raises:
          SandboxError: the interpreter of a worker does not start, or isolation is required and lacking.
        """
        self.limits = limits or Limits()
        self._limits = dataclasses.asdict(self.limits)
        self.workers = workers or len(os.sched_getaffinity(0))
        self._options = {"means": list(means), "readable": [os.fspath(path) for path in readable]}
        self._options["work_bytes"] = WORK_BYTES
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all: list[_Worker] = []
        self._lock = threading.Lock()
        try:
            for _ in range(self.workers):
                self._free.put(self._start())
            required = bool(os.environ.get(REQUIRE)) if require_isolation is None else require_isolation
            if required and self.lacks:
                raise SandboxError(
                    f"isolation is required and this machine lacks {', '.join(self.lacks)}; install bubblewrap, allow "
                    "user namespaces, or leave --require_isolation away"
                )
        except BaseException:
            self.close()
            raise

    def _start(self) -> _Worker:
        worker = _Worker(self._options)
        with self._lock:
            self._all.append(worker)
        return worker

    @property
    def lacks(self) -> list[str]:
        """What isolation lacks here; empty where everything holds."""
        return list(self._all[0].reached["lacks"])

    @property
    def isolation(self) -> str:
        """What holds here, in words."""
        reached = self._all[0].reached
        has = ["limits on CPU, memory, files, processes and output", "an own session and directory"]
        has += ["a read-only private root"] if reached["root"] else []
        has += ["no network"] if reached["network"] else []
        has += ["an own pid namespace"] if reached["pid"] else []
        has += ["a user without rights" if reached["uid"] is not None else "the own user without capabilities"]
        names = {"bwrap": "bubblewrap", "namespaces": "plain namespaces", "limits": "no namespaces"}
        lacks = f"; lacks {', '.join(self.lacks)}" if self.lacks else ""
        return f"{', '.join(has)} (by {names[reached['means']]}){lacks}"

    def run(self, program: Program) -> Outcome:
        """Runs one program; waits for a free worker.

        Raises:
          SandboxError: a lost worker could not be replaced.
        """
        code, tests = program.parts
        request = {"code": code, "tests": tests, "limits": self._limits}
        if program.stdin is not None:
            request |= {"stdin": program.stdin, "split": True, "script": not program.tests}
        return _outcome(self._request(request, self.limits.wall_seconds))

    def run_stages(self, files: Mapping[str, str | bytes], stages: Sequence[Stage]) -> list[Outcome]:
        """Runs commands in one private directory, one after the other until one fails.

        Args:
          files: name or relative path -> content, written before the first command.
          stages: the commands.

        Returns:
          The outcomes of those that ran.

        Raises:
          SandboxError: a lost worker could not be replaced.
        """
        data = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
        request = {
            "files": {name: content.hex() for name, content in data.items()},
            "stages": [dataclasses.asdict(stage) for stage in stages],
        }
        reply = self._request(request, sum(stage.limits.wall_seconds for stage in stages))
        return [_outcome(part) for part in reply.get("stages", [reply])]

    def _request(self, request: Mapping[str, object], seconds: float) -> dict:
        worker = self._free.get()
        try:
            for _ in range(2):  # a worker may be lost through no fault of the program, but hardly twice
                reply = worker.run(request, seconds)
                if reply is not None:
                    return reply
                with self._lock:
                    self._all.remove(worker)
                worker.close()
                worker = self._start()
            return {"status": "crashed", "feedback": LOST, "error": "Lost", "seconds": 0.0, "stdout": "", "cut": False}
        finally:
            self._free.put(worker)

    def map(self, programs: Iterable[Program]) -> Iterator[Outcome]:
        """Outcomes in order; takes programs lazily, a few more than there are workers ahead of what was asked for."""
        with ThreadPoolExecutor(self.workers) as pool:
            waiting: collections.deque[Future[Outcome]] = collections.deque()
            try:
                for program in programs:
                    waiting.append(pool.submit(self.run, program))
                    if len(waiting) > 2 * self.workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def close(self) -> None:
        """Ends the workers."""
        with self._lock:
            workers, self._all = self._all, []
        for worker in workers:
            worker.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_) -> None:
        self.close()
