"""The child: runs one program within its limits. ``start`` never returns.

Requests come over ``control`` (a stream socket), answers go into a pipe; what requests ask for:

    {"argv": [...]}   become another program: a compiler, or what it made
    {"code": "..."}   run Python, then take the steps of its tests and answer questions about it

The supervisor is woken by a byte on ``control`` when it has something to do: behind the last step, or where it may have
to ask more. (When nothing comes for some milliseconds it looks at the pipe by itself.)

Answers are about a program that may have taken this very process over. So they are only ever values and errors, never a
verdict: the supervisor knows what they should be, and this process does not.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import random
import socket
import sys
from _signal import ITIMER_PROF, setitimer
from os import chdir, closerange, dup2, setsid, umask

from data_gen.isolated import feedback, messages, namespaces
from data_gen.isolated.feedback import FILE
from data_gen.isolated.messages import read_order
from data_gen.isolated.namespaces import drop_privileges, limit

CONTROL, ANSWERS, FIRST_FREE = 3, 4, 5  # descriptors in the child
FUTURE = 0x1FF0000  # flags of `from __future__` imports: tests are compiled as the code that they follow


def start(descriptors, directory: str, user: int | None) -> None:
    """Gives up every right, then serves the request."""
    setsid()
    chdir(directory)
    umask(0o077)
    control, output, errors, answers = descriptors  # all above the numbers that they get
    dup2(control, CONTROL)
    dup2(answers, ANSWERS)
    dup2(output, 1)
    dup2(errors, 2)
    closerange(FIRST_FREE, 1024)
    drop_privileges(user)
    if not _ready.dies_with_zygote:
        namespaces.die_with_parent()
    request = read_order(CONTROL)
    limit(request["limits"])
    # A fraction of a second can be limited only by a timer; RLIMIT_CPU stands behind it in whole seconds.
    if "argv" in request:
        become(request, directory)
    else:
        setitimer(ITIMER_PROF, request["cpu_seconds"])
        _python(request)
    os._exit(0)


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
                file.write(bytes.fromhex(data))
        if request["stdin"]:
            _feed(request["stdin"])
        os.close(CONTROL)
        os.close(ANSWERS)
        environment = {"HOME": directory, "TMPDIR": directory, "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
        os.execve(request["argv"][0], request["argv"], environment | request["environment"])
    except OSError as error:
        os.write(2, f"{request['argv'][0]}: {error.strerror}\n".encode())
        os._exit(126)


class Ready:
    """What every Python program finds: made once, in the zygote, for each child to have as its own copy. Done in each
    child it would cost a page fault for every object that it touches."""

    def __init__(self, directory: str, dies_with_zygote: bool):
        self.dies_with_zygote = dies_with_zygote  # as do all in a pid namespace whose process 1 it is
        os.environ.clear()
        os.environ.update(HOME=directory, PATH="/usr/bin:/bin", TMPDIR=directory)
        sys.argv[:] = [FILE]
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r", closefd=False)), "utf-8", "surrogateescape")
        self.writer = io.BufferedWriter(io.FileIO(1, "w", closefd=False))
        sys.stdout = io.TextIOWrapper(self.writer, "utf-8", "backslashreplace", write_through=True)
        self.errors = io.TextIOWrapper(
            io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", write_through=True
        )
        sys.stderr = sys.stdout
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
        for name in [name for name in sys.modules if name == "__main__" or name.startswith("data_gen")]:
            del sys.modules[name]
        self.module = sys.modules["__main__"] = type(sys)("__main__")
        # Builtins of its own: what the program replaces there must not change how the harness counts and reads.
        own = type(sys)("builtins")
        own.__dict__.update(builtins.__dict__)
        self.builtins = self.module.__dict__["__builtins__"] = sys.modules["builtins"] = own


def prepare(directory: str, dies_with_zygote: bool) -> None:
    """Called by the zygote before it forks."""
    global _ready
    _ready = Ready(directory, dies_with_zygote)
    random.seed(0)  # so attempts that draw at random see the same numbers in every run
    _rehearse(_ready)


_REHEARSALS = 40  # after 8 to 20 calls the interpreter has adapted bytecode to what it meets
_REHEARSED = """
import math

class Counter:
    def __init__(self):
        self.seen = {}

    def add(self, word):
        self.seen[word] = self.seen.get(word, 0) + 1

def solve(words, least=1):
    counter = Counter()
    for word in words:
        counter.add(word.lower())
    found = sorted(name for name, count in counter.seen.items() if count >= least)
    return [f"{name}:{len(name)}" for name in found][: math.floor(9.5)]
"""


def _rehearse(ready: Ready) -> None:
    """Has this process do what its children will, with a program of its own.

    What the interpreter learns by it (adapted bytecode, methods found, symbols bound) every child then has; else each
    would learn it again, at the price of a page of its own for every spot where that is noted.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull, "wb") as null:
        for number in range(_REHEARSALS):
            wrong = "assert False" if number % 2 else "assert solve(['a']) == ['a:1']"
            steps = [
                {"eval": [["solve(['b', 'A', 'a'])", 20], ["len('ab')", 20]], "pause": False},
                {"run": wrong, "line": 21, "token": "0"},
            ]
            request = {"code": _REHEARSED, "blank": 1, "script": False, "steps": steps}
            control, nowhere = theirs.fileno(), null.fileno()
            session = Session(request, ready.writer, {"__builtins__": ready.builtins}, control, nowhere, nowhere)
            ours.sendall(messages.order({"repr": 0}) + messages.order({"next": True}))
            session.serve(steps, b"0")
            ours.recv(1 << 16)


_ready: Ready | None = None


def _python(request: dict) -> None:
    if request["several"]:  # of the program's own processes each draws other numbers, as everywhere
        os.register_at_fork(after_in_child=random.seed)
    if request["stdin"]:
        _feed(request["stdin"])
    if request["split"]:
        sys.stderr = sys.__stderr__ = _ready.errors
    else:
        os.dup2(1, 2)
    session = Session(request, _ready.writer, _ready.module.__dict__, CONTROL, 1, ANSWERS)
    session.serve(request["steps"], request["mark"])


class Session:
    """A program and its namespace after it was run. Keeps what it still needs by names of its own, so that a program
    that spoils modules spoils its own answers least."""

    def __init__(self, request: dict, writer, namespace: dict, control: int, output: int, answers: int):
        self.code, self.blank, self.script = request["code"], request["blank"], request["script"]
        self.writer, self.namespace = writer, namespace
        self.control, self.output, self.answers = control, output, answers
        self.flags = 0
        self.kept: list = []
        self._frame, self._dump, self._read = messages.framed, messages.dump_plain, read_order
        self._write = os.write
        self._record = feedback.record

    def answer(self, message: dict) -> None:
        """Sends an answer, behind everything that the program has printed so far."""
        try:  # noqa: SIM105 (no object for what most often does nothing)
            self.writer.flush()
        except BaseException:
            pass
        data = self._frame(message)
        sent = self._write(self.answers, data)
        while sent < len(data):
            sent += self._write(self.answers, memoryview(data)[sent:])

    def serve(self, steps: list[dict], mark: bytes) -> None:
        """Runs the code and takes the steps one after the other without waiting for anybody, but where ``paused``.

        ``mark`` goes to standard output between two steps: what a program prints after a step that the supervisor finds
        failed is none of its feedback.
        """
        found = self.execute()
        self.answer(found)
        for step in [] if "error" in found else steps:
            found = self.reply(step)
            self.answer(found)
            if "error" in found:
                break
            if paused(step, found):
                self.questions()
            with contextlib.suppress(OSError):
                self._write(self.output, mark)
        self.questions()

    def questions(self) -> None:
        """Answers questions until the supervisor wants the next step, or hangs up."""
        while True:
            self._write(self.control, b".")
            question = self._read(self.control)
            if question is None:
                os._exit(0)
            if "next" in question:
                return
            self.answer(self.reply(question))

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
            return self.failed(error, feedback.compared_in(self.code))
        return {"done": True}

    def reply(self, question: dict) -> dict:
        """Answers one question.

        ``run``: a statement, to be run in the program's namespace. ``eval``: expressions; the values come back, those
        that are no plain data as None, and stay here under ``__kept`` and their number. ``repr``: of a kept value.
        ``flat``: a kept value as plain data after all. ``true``: whether a kept value counts as true.
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
            if "flat" in question:
                return {"flat": self._plain(flat(self.kept[question["flat"]]))}
            return {"true": bool(self.kept[question["true"]])}
        except BaseException as error:
            return self.failed(error)

    def _compile(self, source: str, line: int, mode: str):
        return compile("\n" * (line - 1) + source, FILE, mode, flags=self.flags, dont_inherit=True)

    def _plain(self, value):
        try:
            return self._dump(value).hex()
        except BaseException:
            return None


def paused(step: dict, answer: dict) -> bool:
    """Whether the child waits after a step: where the supervisor may have to ask more about it. That is so where this
    one says so, and where a value is no plain data, or has sets in it, whose order it has to be asked for."""
    if step.get("pause"):
        return True
    for data in answer.get("values", ()):
        raw = bytes.fromhex(data) if isinstance(data, str) else b"\x93"
        if asked_for(raw):
            return True
    return False


def asked_for(raw: bytes) -> bool:
    """Whether pickled data is of a value that the supervisor asks more about."""
    return any(code in raw for code in _ASKED)


# EMPTY_SET, FROZENSET, STACK_GLOBAL, NEWOBJ. Other data may hold these bytes by chance and is asked for, too.
_ASKED = (b"\x8f", b"\x91", b"\x93", b"\x81")


def flat(value):
    """``value`` with instances of classes below a builtin one (Counter, namedtuple, IntEnum, ...) as that builtin's,
    by the builtin's own methods; other objects stay."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int.__add__(value, 0)
    if isinstance(value, float):
        return float.__add__(value, 0.0)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes):
        return b"".join([value])
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return kind([flat(part) for part in kind.__iter__(value)])
    if isinstance(value, dict):
        return {flat(key): flat(part) for key, part in dict.items(value)}
    if isinstance(value, type({}.keys())):
        return {flat(key) for key in value}
    return value
