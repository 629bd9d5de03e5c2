"""The child that calls one function on many inputs and sends what comes out, as evalplus 0.3.1 would run it.

It holds inputs and never an expected output. The one exception: an output of a class that is not known (see
``outputs``) can be compared nowhere else, so its expected output is handed in after the call; its class could answer
anything, there as in evalplus, and the parent is told that it was asked.
"""

from __future__ import annotations

import builtins
import faulthandler
import gc
import io
import os
import random
import resource
import sys
import time
from _signal import ITIMER_REAL, SIGALRM, setitimer
from _signal import signal as handle_signal  # without the enumerations that cost 10 us a call
from base64 import b64decode
from json import dumps
from pickle import loads
from struct import pack

from data_gen.isolated import evalplus_rules, feedback, messages, namespaces, outputs
from data_gen.isolated.feedback import FILE

CONTROL, DATA = 3, 4  # descriptors in the child
# Kinds of frames: one byte, a length of four, the content.
OUTPUT, FOREIGN, COMPARED, RAISED, TRACEBACK, LOADED, LARGE = range(7)
NEVER = float("inf")  # by the clock of a run

# Depth of the stack at which evalplus calls: a program may recurse 1,000 frames less these.
DEPTH = 24

# Task id to {"base": inputs, "plus": inputs}, set by the worker before it forks. Pickled, for as objects they would lie
# in thousands of pages, of which each fork notes every one.
INPUTS: dict[str, dict[str, bytes]] = {}
MAPPED = [0]  # MiB of address space that a child has from the start


def prepare(plain: bool) -> None:
    """Loads what children shall find in memory. Called before the zygote is confined and may see less.

    Args:
      plain: whether programs import nothing but modules of Python itself; else numpy is loaded, and what evalplus takes
        something away from.
    """
    if not plain:
        import shutil  # noqa: F401
        import subprocess  # noqa: F401

        import numpy.fft
        import numpy.linalg
        import numpy.random  # noqa: F401

    outputs.prepare(with_numpy=not plain)


def settle(directory: str) -> None:
    """Makes the zygote what programs shall find, which may write to ``directory``."""
    random.seed(0)
    os.environ.clear()
    os.environ.update(HOME=directory, PATH="/usr/bin:/bin", TMPDIR=directory)
    sys.argv[:] = [FILE]
    for name in [name for name in sys.modules if name == "__main__" or name.startswith("data_gen")]:
        del sys.modules[name]
    sys.modules["__main__"] = type(sys)("__main__")
    with open("/proc/self/statm") as file:
        MAPPED[0] = (int(file.read().split()[0]) * resource.getpagesize() >> 20) + 1


def start(descriptors, directory: str, user: int | None) -> None:
    """Gives up every right, then serves one request. Never returns."""
    os.setsid()
    os.chdir(directory)
    os.umask(0o077)
    null = os.open("/dev/null", os.O_RDWR)
    moved = [os.dup(fd) for fd in [_above(fd) for fd in (*descriptors, null)]]
    for fd, place in zip(moved, (CONTROL, DATA, 0), strict=True):
        os.dup2(fd, place)
    os.dup2(0, 1)
    os.dup2(0, 2)
    os.closerange(5, 1024)
    namespaces.drop_privileges(user)
    namespaces.die_with_parent()
    request = messages.read_message(CONTROL)
    request["limits"]["memory_mb"] += MAPPED[0]
    namespaces.limit(namespaces.resource_limits(request["limits"]))
    memory = request["limits"]["memory_mb"] << 20
    for kind in (resource.RLIMIT_DATA, resource.RLIMIT_STACK):
        resource.setrlimit(kind, (memory, memory))
    run = Calls(request)
    disable()
    _deeper(DEPTH, run.run)
    os._exit(0)


def _above(fd: int) -> int:
    while fd <= DATA:
        fd = os.dup(fd)
    return fd


def _deeper(frames: int, function) -> None:
    if frames:
        _deeper(frames - 1, function)
    else:
        function()


_TAKEN_FROM_OS = """
    kill system putenv remove removedirs rmdir fchdir setuid fork forkpty killpg rename renames truncate replace unlink
    fchmod fchown chmod chown chroot lchflags lchmod lchown getcwd chdir
"""


def disable() -> None:
    """What evalplus's ``reliability_guard`` takes away: code that uses it fails there, so it must fail here."""
    faulthandler.disable()
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in _TAKEN_FROM_OS.split():
        setattr(os, name, None)
    for name in ("exit", "quit", "open", "help"):
        setattr(builtins, name, None)
    for module, names in (("shutil", ("rmtree", "move", "chown")), ("subprocess", ("Popen",))):
        for name in names if module in sys.modules else ():
            setattr(sys.modules[module], name, None)
    for name in ("ipdb", "joblib", "resource", "psutil", "tkinter"):
        sys.modules[name] = None


class _Swallow(io.StringIO):
    """Takes what is printed, and can not be read."""

    def read(self, *_, **__):
        raise OSError

    readline = readlines = read

    def readable(self, *_, **__):
        return False


class _TimeUp(Exception):
    """Raised in the program when an input's time is up."""

    __qualname__ = __name__ = "TimeoutException"


class Calls:
    """One run. Keeps what it needs by names of its own: a program that spoils modules shall spoil its own answers."""

    def __init__(self, request: dict):
        self.request = request
        first, inputs = request["first"], INPUTS[request["task"]]
        gc.disable()  # nothing here is garbage, and what is frozen no program's collections walk
        inputs = [one for suite in request["suites"] for one in loads(inputs[suite])]
        gc.freeze()
        gc.enable()
        self.inputs = inputs[first : first + request["count"]]
        self.rule, self.record = request["rule"], request["record"]
        self.write, self.encode, self.pack, self.foreign = os.write, outputs.encode, pack, outputs.Foreign
        self.clock, self.too_large = time.perf_counter, outputs.TooLarge
        self.getcwd = os.getcwd  # feedback needs it, and `disable` takes it away
        self.describe, self.judge, self.decode = feedback.record, evalplus_rules.judge, outputs.decode
        self.timer, self.handle, self.real, self.alarm = setitimer, handle_signal, ITIMER_REAL, SIGALRM
        self.deadline, self.alarm_is_set, self.time_up = NEVER, False, _TimeUp

    def send(self, kind: int, content: bytes = b"") -> None:
        frame = self.pack("<BI", kind, len(content)) + content
        sent = self.write(DATA, frame)
        while sent < len(frame):  # longer than the pipe
            sent += self.write(DATA, memoryview(frame)[sent:])

    def run(self) -> None:
        """Runs the program, then calls its function on one input after the other."""
        source = self.request["source"]
        namespace: dict = {}
        kept = sys.stdin, sys.stdout, sys.stderr
        try:
            sys.stdin = sys.stdout = sys.stderr = _Swallow()
            try:
                exec(compile(source, FILE, "exec", dont_inherit=True), namespace)
                function = namespace[self.request["entry_point"]]
            finally:
                sys.stdin, sys.stdout, sys.stderr = kept
        except BaseException as error:
            self.failed(error)
            return
        self.send(LOADED)
        clock, record, send_output = self.clock, self.record, self.send_output
        usual, longer = self.request["seconds"], {int(index): limit for index, limit in self.request["longer"].items()}
        fresh = not self.request["stateless"]  # the program may have got at the alarm or the streams
        swallow = _Swallow()
        for index, arguments in enumerate(self.inputs):
            try:
                started = clock()
                self.deadline = started + longer.get(index, usual)
                if fresh or not self.alarm_is_set:
                    self.set_alarm()
                try:
                    if fresh or swallow.tell():
                        swallow = _Swallow()
                    sys.stdin = sys.stdout = sys.stderr = swallow
                    try:
                        out = function(*arguments)
                    finally:
                        if record:
                            taken = clock() - started
                        sys.stdin, sys.stdout, sys.stderr = kept
                finally:
                    self.deadline = NEVER
                    if fresh:
                        self.timer(self.real, 0)
                if record:
                    self.send_recorded(out, taken)
                else:
                    send_output(out, arguments)
            except BaseException as error:
                self.failed(error)
                return

    def set_alarm(self) -> None:
        """It rings after the shortest time that an input may take: no system call for each input."""
        self.alarm_is_set = True
        self.timer(self.real, self.request["seconds"])
        self.handle(self.alarm, self.on_alarm)

    def on_alarm(self, signum, frame) -> None:
        """Ends the call that takes too long; is set again where it has time left."""
        left = self.deadline - self.clock()
        if left <= 0:
            self.alarm_is_set = False  # once an input: a program may catch it and go on
            raise self.time_up("Timed out!")
        self.timer(self.real, min(left, self.request["seconds"]))

    def send_recorded(self, out, seconds: float) -> None:
        if self.rule == "not_none":
            out = out is not None
        try:
            content = self.encode(out)
        except outputs.TooLarge:
            content = b""  # nothing equals that
        self.send(OUTPUT, self.pack("<d", seconds) + content)

    def send_output(self, out, arguments) -> None:
        rule = self.rule
        if rule == "not_none" and not isinstance(out, bool):
            out = out is not None
        # evalplus evaluates the polynomial that the program left behind, which is another where it changed its list.
        sent = (list(arguments), out) if rule == "root" else out
        try:
            content = self.encode(sent)
        except self.foreign:
            if rule == "set" and not isinstance(out, (list, tuple, set, frozenset, dict)):
                out = list(out)  # a generator, say: only its elements are compared
                try:
                    content = self.encode(out)
                except self.foreign:
                    return self.compare(out, arguments)
                except self.too_large:
                    return self.send(LARGE)
            else:
                return self.compare(out, arguments)
        except self.too_large:
            return self.send(LARGE)
        except (RecursionError, ValueError, AttributeError):  # holds itself, or is deeper than bytes can tell
            return self.compare(out, arguments)
        self.send(OUTPUT, content)

    def compare(self, out, arguments) -> None:
        """Compares here, with the expected output that the parent sends."""
        self.send(FOREIGN)
        content = messages.read_message(CONTROL)
        expected = self.decode(b64decode(content["expected"]))
        right, atol = self.judge(self.rule, arguments, out, expected, content["atol"])
        text = "" if right else f"an object of class {type(out).__name__}"
        self.send(COMPARED, dumps([right, atol, text]).encode())

    def failed(self, error: BaseException) -> None:
        """Tells of an exception: first that there was one, then what it says."""
        self.send(RAISED)
        try:
            os.getcwd = self.getcwd
            text = dumps(self.describe(error))
        except BaseException:
            return
        self.send(TRACEBACK, text.encode())
