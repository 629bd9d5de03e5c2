"""The supervisor's work: has children run programs, holds what they must not know, and judges what they answer."""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import resource
import select
import signal
import socket
import struct
import time

from data_gen.isolated import feedback, judge, messages, namespaces

LOOK = 0.005  # seconds after which answers are looked for of which the child has said nothing
WATCH = 0.05  # seconds between looks at the memory of programs that may start processes


class Ended(Exception):
    """The child ended, or had to be ended."""


class Attempt:
    """This side of one child: what it prints, what it answers, how it ended."""

    def __init__(self, orders: socket.socket, helpers: frozenset[int] = frozenset(), letter: bytes = b"F"):
        """Orders the child. It is ready, and without rights, before there is anything for it to do.

        ``helpers``: processes below this one that are none of the program's. ``letter``: see ``zygote.py``.
        """
        self.orders, self.helpers = orders, helpers
        self.output, self.errors, self.answers = bytearray(), bytearray(), bytearray()
        self.overran = self.memory = self.looking = False
        self.ended: dict | None = None
        self.control, child = socket.socketpair()
        (out_read, out_write), (err_read, err_write), (self.inbox, inbox_write) = os.pipe(), os.pipe(), os.pipe()
        socket.send_fds(orders, [letter], [child.fileno(), out_write, err_write, inbox_write])
        child.close()
        self.streams = {out_read: self.output, err_read: self.errors}
        self.open = {self.control.fileno(), *self.streams}
        self.poll = select.poll()
        for fd in (*self.open, orders.fileno()):
            self.poll.register(fd, select.POLLIN)
        for fd in (out_write, err_write, inbox_write):
            os.close(fd)
        for fd in (*self.streams, self.inbox):
            os.set_blocking(fd, False)
        self.control.setblocking(False)

    places = (namespaces.WORK,)  # names of the private directory

    def begin(self, limits: dict, more_output: int = 0) -> None:
        """Starts the clock; ``more_output``: bytes to keep beyond the limit on output."""
        self.limits = limits
        self.kept = limits["output_bytes"] + 1 + more_output
        self.started = time.monotonic()
        self.deadline = self.started + limits["wall_seconds"]
        self.watched = limits["processes"] > 1

    def ask(self, question: dict) -> dict:
        """Sends a question and waits for the answer.

        Raises:
          Ended: the child ended or its time is up.
          judge.Tampered: the answer is none.
        """
        self.tell(question)
        return self.answer()

    def tell(self, message: dict) -> None:
        data = memoryview(messages.order(message))
        while data:
            try:
                data = data[self.control.send(data) :]
            except BlockingIOError:
                self._wait(writing=True)
            except OSError:
                self.wait_for_end()
                raise Ended from None

    def answer(self) -> dict:
        """The next answer."""
        while (body := self._whole()) is None:
            if self.ended is not None:
                raise Ended
            self._wait()
        try:
            found = json.loads(body)
        except (ValueError, RecursionError) as wrong:
            raise judge.Tampered from wrong
        if not isinstance(found, dict):
            raise judge.Tampered
        return found

    def _whole(self) -> bytes | None:
        """The next message, None if it has not come whole."""
        if len(self.answers) < 4:
            return None
        size = struct.unpack_from("<I", self.answers)[0]
        if size > messages.LARGEST:
            raise judge.Tampered
        if len(self.answers) < 4 + size:
            return None
        body = bytes(self.answers[4 : 4 + size])
        del self.answers[: 4 + size]
        return body

    def wait_for_end(self) -> None:
        """Until the child has ended by itself or is out of time."""
        while self.ended is None:
            self._wait()

    def _wait(self, writing: bool = False) -> None:
        """Until something happens; raises ``Ended`` when the wall time is up."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            self.overran = True
            self.kill()
            raise Ended
        if writing:
            self.poll.modify(self.control.fileno(), select.POLLIN | select.POLLOUT)
        pause = min(left, WATCH if self.watched else left, left if self.looking else LOOK)
        events = self.poll.poll(1000 * pause)
        if not events and not self.looking:
            self.looking = True
            self.open.add(self.inbox)
            self.poll.register(self.inbox, select.POLLIN)
        for fd, event in events:
            if fd == self.orders.fileno():
                self._end()
            elif fd == self.control.fileno():
                if event & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    self._rung()
            elif fd == self.inbox:
                self._receive()
            else:
                self._drain(fd)
        if writing and self.control.fileno() in self.open:
            self.poll.modify(self.control.fileno(), select.POLLIN)
        if self.watched and self.ended is None and self._resident() > self.limits["memory_mb"] << 20:
            self.memory = True
            self.kill()
            raise Ended

    def _rung(self) -> None:
        """The child says that it has answered."""
        try:
            if not self.control.recv(1 << 12):
                self._close(self.control.fileno())
        except BlockingIOError:
            return
        except OSError:
            self._close(self.control.fileno())
        self._receive()

    def _receive(self) -> None:
        try:
            data = os.read(self.inbox, 1 << 20)
        except BlockingIOError:
            return
        if len(self.answers) < 2 * messages.LARGEST:  # what is longer is no answer, and is not kept
            self.answers += data
        if not data:
            self._close(self.inbox)

    def _drain(self, fd: int) -> bool:
        """Reads once; what is past the limit is dropped. False if there is nothing (more)."""
        buffer, limit = self.streams[fd], self.kept
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            self._close(fd)
        buffer += data[: max(0, limit - len(buffer))]
        return bool(data)

    def _close(self, fd: int) -> None:
        if fd in self.open:
            self.open.discard(fd)
            self.poll.unregister(fd)

    def _end(self) -> None:
        data = self.orders.recv(1 << 16)
        if not data:
            raise OSError("the zygote is gone")
        self._receive()
        ended = marshal.loads(data)
        self.ended = ended if isinstance(ended, dict) else dict(zip(("code", "cpu"), ended, strict=True))

    def kill(self) -> None:
        """Ends the child; returns when nothing of it is left."""
        if self.ended is None:
            self.orders.send(b"K")
            self._end()

    def settle(self) -> None:
        """Takes in what it has printed so far, and stops the clock."""
        for fd in self.streams:
            for _ in range(64):
                if fd not in self.open or not self._drain(fd):
                    break
        self.seconds = time.monotonic() - self.started

    def close(self) -> None:
        """Ends the child if it is still there and lets go of everything."""
        self.kill()
        for fd in (*self.streams, self.inbox):
            os.close(fd)
        self.control.close()

    def _resident(self) -> int:
        """Bytes of memory that all the program's processes have for themselves."""
        total = 0
        for pid in set(descendants(os.getpid())) - self.helpers:
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{pid}/statm") as file:
                    fields = file.read().split()
                total += (int(fields[1]) - int(fields[2])) * resource.getpagesize()
        return total


def descendants(pid: int) -> list[int]:
    """Process numbers below ``pid``, parents first."""
    found, at = [], 0
    line = [pid]
    while at < len(line):
        with contextlib.suppress(OSError):
            with open(f"/proc/{line[at]}/task/{line[at]}/children") as file:
                children = [int(number) for number in file.read().split()]
            line += children
            found += children
        at += 1
    return found


def run_python(attempt: Attempt, request: dict) -> dict:
    """Has a program run and judges its tests."""
    code, tests = request["code"], request["tests"]
    first = code.count("\n")
    steps = judge.steps(tests, judge.rebinds(code)) if tests else ()
    whole = steps is None  # tests that are no Python by themselves: one file, with all that this means
    asked = [judge.question(step, first) for step in steps or ()]
    mark = os.urandom(12).hex()
    sent = {"code": code + tests if whole else code, "mark": mark.encode(), **_limits(request["limits"])}
    sent |= {"steps": [question for question in asked if question], "blank": tests.count("\n")}
    sent |= {"stdin": request.get("stdin", "")} | {name: request.get(name, False) for name in ("split", "script")}
    attempt.begin(request["limits"], more_output=len(mark) * len(asked))
    error, tail, status, taken = "", None, "passed", 0
    try:
        if not judge.checked(attempt.ask(sent)).get("done"):
            raise judge.Tampered
        for step, question in zip(steps or (), asked, strict=True):
            answer = attempt.answer() if question else None
            taken += bool(question)
            judge.examine(step, first, question, answer, attempt.ask)
            if question and judge.waits(question, answer):
                attempt.tell({"next": True})
    except judge.Failed as failed:
        error = failed.error["type"]
        status = "memory" if error == "MemoryError" else "failed"
        tail = feedback.written(failed.error, (code + tests).splitlines())
    except judge.Tampered:
        status, error, tail = "crashed", "Tampered", "Crashed: the program spoke in the place of its harness\n"
    except Ended:
        status = ""
    attempt.settle()
    printed = bytes(attempt.output).split(mark.encode())
    # Steps that the program took after the one that failed are none of its feedback.
    attempt.output = bytearray(b"".join(printed[:taken] if status == "failed" and taken else printed))
    return _reply(attempt, status, error, tail)


def _limits(limits: dict, committed: bool = False) -> dict:
    """What a child has to know of its limits."""
    found = {"limits": namespaces.resource_limits(limits, committed), "cpu_seconds": limits["cpu_seconds"]}
    return found | {"several": limits["processes"] > 1}


def run_stages(attempt: Attempt, request: dict) -> tuple[dict, Attempt]:
    """Runs commands one after the other in one private directory, until one fails: (reply, the last attempt)."""
    replies: list[dict] = []
    files = request["files"]
    for stage in request["stages"]:
        if replies:
            attempt.close()
            attempt = Attempt(attempt.orders, attempt.helpers, b"S")
        sent = {name: stage[name] for name in ("argv", "environment", "stdin")}
        sent |= {"files": files, **_limits(stage["limits"], stage["committed"])}
        attempt.begin(stage["limits"])
        try:
            attempt.tell(sent)
            attempt.wait_for_end()
        except Ended:
            pass
        attempt.settle()
        code = attempt.ended.get("code", -signal.SIGKILL)
        ordinary = code >= 0 and not attempt.overran and not attempt.memory
        status = ("passed" if code == 0 else "failed") if ordinary else ""
        silent = ordinary and code and not attempt.output and not attempt.errors
        tail = f"Exit: the program ended with status {code}\n" if silent else ""
        replies.append(_reply(attempt, status, stage["error"] if code else "", tail if ordinary else None))
        files = {}
        if replies[-1]["status"] != "passed":
            break
    return {"status": replies[-1]["status"], "stages": replies}, attempt


def _reply(attempt: Attempt, status: str, error: str, tail: str | None) -> dict:
    limits = attempt.limits
    kept = limits["output_bytes"]
    texts = [bytes(part[:kept]).decode("utf-8", "replace") for part in (attempt.output, attempt.errors)]
    cut = len(attempt.output) > kept or len(attempt.errors) > kept
    text = texts[0] + texts[1]
    for place in attempt.places:
        text = text.replace(place, ".")
    text = feedback.ADDRESS.sub("0x...", text)
    if cut:
        text += "\n... output cut\n"
    ended = attempt.ended or {}
    if "lost" in ended:
        return {"status": "lost", "error": "", "feedback": "", "seconds": 0.0, "stdout": "", "cut": False}
    if not status:
        status, error, tail = _how_it_ended(attempt, ended.get("code", 0), ended.get("cpu", 0.0))
    if text and tail and not text.endswith("\n"):
        text += "\n"
    shown = {"status": status, "error": error, "feedback": text + (tail or ""), "seconds": attempt.seconds}
    return shown | {"stdout": texts[0], "cut": cut}


def _how_it_ended(attempt: Attempt, code: int, used: float) -> tuple[str, str, str]:
    limits = attempt.limits
    if attempt.memory:
        return "memory", "MemoryError", f"MemoryError: more than {limits['memory_mb']} MiB\n"
    if attempt.overran:
        return "timeout", "TimeoutError", f"TimeoutError: no result within {limits['wall_seconds']:g} s\n"
    if code in (-signal.SIGPROF, -signal.SIGXCPU) or (code == -signal.SIGKILL and used >= limits["cpu_seconds"]):
        return "timeout", "TimeoutError", f"TimeoutError: no result within {limits['cpu_seconds']:g} s\n"
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return "crashed", name, f"Crashed: killed by {name}\n"
    return "crashed", "Exit", f"Exit: the program ended with status {code} before its tests\n"


def serve(orders: socket.socket, requests: int, replies: int, base: str) -> None:
    """Takes requests until there are no more of them."""
    Attempt.places = (namespaces.WORK, os.path.join(base, "attempt"))
    helpers = frozenset(descendants(os.getpid()))
    attempt = Attempt(orders, helpers)
    while (request := messages.read_message(requests)) is not None:
        try:
            if "stages" in request:
                reply, attempt = run_stages(attempt, request)
            else:
                reply = run_python(attempt, request)
        except OSError:
            reply = {"status": "lost"}
        messages.write_message(replies, reply)
        # What is left to do is done while the other side is busy with the answer.
        try:
            attempt.close()
            attempt = Attempt(orders, helpers)
        except OSError:
            break  # the zygote is gone; this worker will be replaced
