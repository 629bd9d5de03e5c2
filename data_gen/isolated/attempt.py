"""The child: runs one program within its limits. ``start`` never returns.

Requests come over ``control`` (a stream socket); what they ask for:

    {"argv": [...]}   become another program: a compiler, or what it made
    {"code": "..."}   run Python, then answer questions about it until the supervisor hangs up

Answers are about a program that may have taken this very process over. So they are only ever values and errors, never a
verdict: the supervisor knows what they should be, and this process does not.
"""

from __future__ import annotations

import base64
import builtins
import contextlib
import io
import os
import random
import signal
import sys

from data_gen.isolated import feedback, messages, namespaces
from data_gen.isolated.feedback import FILE

CONTROL = 3  # its descriptor in the child
FUTURE = 0x1FF0000  # flags of `from __future__` imports: tests are compiled as the code that they follow


def start(descriptors, directory: str, user: int | None) -> None:
    """Gives up every right, then serves the request."""
    os.setsid()
    os.chdir(directory)
    os.umask(0o077)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    # Not onto one another: first out of the way, then into place.
    moved = [os.dup(fd) for fd in [_above(fd) for fd in descriptors]]
    for fd, place in zip(moved, (CONTROL, 1, 2), strict=True):
        os.dup2(fd, place)
    os.closerange(4, 1024)
    namespaces.drop_privileges(user)
    namespaces.die_with_parent()
    request = messages.read_message(CONTROL)
    namespaces.limit(request["limits"], request.get("committed", False))
    # A fraction of a second can be limited only by a timer; RLIMIT_CPU stands behind it in whole seconds.
    if "argv" in request:
        become(request, directory)
    else:
        signal.setitimer(signal.ITIMER_PROF, request["limits"]["cpu_seconds"])
        _python(request, directory)
    os._exit(0)


def _above(fd: int) -> int:
    while fd <= CONTROL:
        fd = os.dup(fd)
    return fd


def _feed(text: str) -> None:
    """Makes ``text`` the standard input."""
    try:
        fd = os.memfd_create("stdin")
    except (AttributeError, OSError):
        fd = os.open("stdin", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.unlink("stdin")
    data = memoryview(text.encode("utf-8", "surrogateescape"))
    while data:
        data = data[os.write(fd, data) :]
    os.lseek(fd, 0, os.SEEK_SET)
    os.dup2(fd, 0)
    os.close(fd)


def become(request: dict, directory: str) -> None:
    """Writes the files and executes the command; its exit status is seen by the zygote, which it can not reach."""
    try:
        for name, data in request["files"].items():
            os.makedirs(os.path.dirname(os.path.join(directory, name)), exist_ok=True)
            with open(name, "wb") as file:
                file.write(base64.b64decode(data))
        if request["stdin"]:
            _feed(request["stdin"])
        os.close(CONTROL)
        environment = {"HOME": directory, "TMPDIR": directory, "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
        os.execve(request["argv"][0], request["argv"], environment | request["environment"])
    except OSError as error:
        os.write(2, f"{request['argv'][0]}: {error.strerror}\n".encode())
        os._exit(126)


def _python(request: dict, directory: str) -> None:
    random.seed(0)  # a fork seeds it anew; so attempts that draw at random see the same numbers in every run
    os.environ.clear()
    os.environ.update(HOME=directory, PATH="/usr/bin:/bin", TMPDIR=directory)
    sys.argv[:] = [FILE]
    if request.get("stdin"):
        _feed(request["stdin"])
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r", closefd=False)), "utf-8", "surrogateescape")
    writer = io.BufferedWriter(io.FileIO(1, "w", closefd=False))
    sys.stdout = io.TextIOWrapper(writer, "utf-8", "backslashreplace", write_through=True)
    sys.stderr = sys.stdout
    if request.get("split"):
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", write_through=True)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    for name in [name for name in sys.modules if name == "__main__" or name.startswith("data_gen")]:
        del sys.modules[name]
    session = Session(request, writer)
    session.answer(session.execute())
    while True:
        question = messages.read_message(CONTROL)
        if question is None:
            return
        session.answer(session.reply(question))


class Session:
    """A program and its namespace after it was run. Keeps what it still needs by names of its own, so that a program
    that spoils modules spoils its own answers least."""

    def __init__(self, request: dict, writer):
        self.code, self.blank = request["code"], request.get("blank", 0)
        self.script = request.get("script", False)
        self.writer = writer
        self.module = type(sys)("__main__")
        self.namespace = self.module.__dict__
        # Builtins of its own: what the program replaces there must not change how the harness counts and reads.
        own = type(sys)("builtins")
        own.__dict__.update(builtins.__dict__)
        self.namespace["__builtins__"] = sys.modules["builtins"] = own
        sys.modules["__main__"] = self.module
        self.flags = 0
        self.kept: list = []
        self._frame, self._dump, self._load = messages.framed, messages.dump_plain, messages.load_plain
        self._write, self._encode, self._decode = os.write, base64.b64encode, base64.b64decode
        self._record = feedback.record

    def answer(self, message: dict) -> None:
        """Sends an answer, behind everything that the program has printed so far."""
        with contextlib.suppress(BaseException):
            self.writer.flush()
        data = memoryview(self._frame(message))
        while data:
            data = data[self._write(CONTROL, data) :]

    def failed(self, error: BaseException, compare=None) -> dict:
        return {"error": self._record(error, compare), "memory": isinstance(error, MemoryError)}

    def execute(self) -> dict:
        """Runs the code as a module of its own."""
        try:
            try:
                code = compile(self.code, FILE, "exec", dont_inherit=True)
            except SyntaxError:
                # The tests stand behind the code in the file: an open block is an error on their first line.
                compile(self.code + "assert 0\n" * self.blank, FILE, "exec", dont_inherit=True)
                raise
            self.flags = code.co_flags & FUTURE
            exec(code, self.namespace)
        except SystemExit as error:
            if not (self.script and error.code in (None, 0)):  # a program on its own may end so; tests come after it
                return self.failed(error)
        except BaseException as error:
            return self.failed(error, feedback.compared_in(self.code, self.namespace))
        return {"done": True}

    def reply(self, question: dict) -> dict:
        """Answers one question.

        ``run``: a statement, to be run in the program's namespace. ``eval``: expressions; the values come back, those
        that are no plain data as None, and stay here under ``__kept`` and their number. ``repr``: of a kept value.
        ``equal``: whether a kept value equals each of some values. ``true``: whether a kept value counts as true.
        """
        try:
            if "run" in question:
                exec(self._compile(question["run"], question["line"], "exec"), self.namespace)
                return {"done": question["token"]}
            if "eval" in question:
                for source, line in question["eval"]:
                    value = eval(self._compile(f"({source})", line, "eval"), self.namespace)
                    self.namespace[f"__kept{len(self.kept)}"] = value
                    self.kept.append(value)
                first = len(self.kept) - len(question["eval"])
                return {"first": first, "values": [self._plain(value) for value in self.kept[first:]]}
            if "repr" in question:
                return {"repr": repr(self.kept[question["repr"]])[:1000]}
            if "equal" in question:
                value = self.kept[question["equal"]]
                return {"equal": [bool(value == self._load(self._decode(other))) for other in question["others"]]}
            return {"true": bool(self.kept[question["true"]])}
        except BaseException as error:
            return self.failed(error)

    def _compile(self, source: str, line: int, mode: str):
        return compile("\n" * (line - 1) + source, FILE, mode, flags=self.flags, dont_inherit=True)

    def _plain(self, value):
        try:
            return self._encode(self._dump(value)).decode()
        except BaseException:
            return None
