"""The supervisor: takes requests of ``sandbox.py``, has a zygote fork a child for each, judges. Standard library only.

    python -S -s -P -B sandbox_worker.py REQUEST_FD REPLY_FD BASE_DIRECTORY OPTIONS

Requests and replies are JSON behind a four-byte length; OPTIONS is JSON too. Tests and expected values stay in this
process, which runs no foreign code and which no program can see: see ``isolated/__init__.py`` for who is who.
"""

from __future__ import annotations

# Modules that attempts often import are loaded here once; a fork then has them for nothing.
import bisect  # noqa: F401
import collections  # noqa: F401
import contextlib
import copy  # noqa: F401
import datetime  # noqa: F401
import functools  # noqa: F401
import heapq  # noqa: F401
import itertools  # noqa: F401
import json
import math  # noqa: F401
import operator  # noqa: F401
import os
import re  # noqa: F401
import resource
import select
import shutil
import signal
import socket
import string  # noqa: F401
import struct
import sys
import time
import typing  # noqa: F401

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.append(ROOT)  # for the imports below alone: programs shall not see our packages
from data_gen.isolated import attempt, feedback, judge, messages, namespaces, zygote  # noqa: E402

sys.path.remove(ROOT)
sys.path_importer_cache.clear()

MEMORY = 4 << 30  # address space of this process: an answer that would take more is refused, not swallowed
WATCH = 0.05  # seconds between looks at the memory of programs that may start processes


class Ended(Exception):
    """The child ended, or had to be ended."""


# ---- isolation


def isolate(base: str, options: dict, pipes: tuple) -> tuple[socket.socket, dict]:
    """Starts the zygote with all the isolation that this system lets it have: (socket to it, what was reached).

    OPTIONS: ``means``: ways to try, in this order, of "bwrap", "namespaces", "limits"; ``readable``: further paths that
    programs may read; ``work_bytes``: size of the private directory.
    """
    last = ""
    for means in options["means"]:
        if means == "bwrap" and shutil.which("bwrap") is None:
            last = "bubblewrap is not installed"
            continue
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            for fd in (ours.fileno(), *pipes):
                os.close(fd)
            ours.detach()
            _become_zygote(theirs, means, base, options)
        theirs.close()
        hello = ours.recv(1 << 16)
        if hello:
            return ours, json.loads(hello)
        ours.close()
        os.waitpid(pid, 0)
        last = f"{means} did not start"
    raise SystemExit(f"no isolation at all: {last}")


def _become_zygote(orders: socket.socket, means: str, base: str, options: dict) -> None:
    try:
        namespaces.die_with_parent()
        if means == "bwrap":
            os.set_inheritable(orders.fileno(), True)
            arguments = json.dumps({"orders": orders.fileno(), "options": options, "seed": os.getpid()})
            command = [
                os.path.realpath(sys.executable),
                "-S",
                "-s",
                "-P",
                "-B",
                os.path.abspath(__file__),
                "--zygote",
                arguments,
            ]
            readable = [*options["readable"], os.path.dirname(os.path.abspath(__file__)), command[0]]
            os.umask(0o022)  # programs must pass through the directories that it makes
            os.execvp("bwrap", namespaces.bubblewrap(command, readable, options["work_bytes"]))
        reached = {"means": means, "network": False, "pid": False, "mounts": False, "root": False}
        seed = os.getpid()
        if means == "namespaces":
            namespaces.enter(reached)
            if reached["pid"]:
                pid = os.fork()
                if pid:
                    orders.close()
                    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 255)
                namespaces.die_with_parent()
            if reached["mounts"]:
                reached["root"] = namespaces.private_root(base, options["readable"], options["work_bytes"])
        serve(orders, reached, base, options, seed)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(1)


def _zygote_in_bubblewrap(arguments: dict) -> None:
    os.umask(0o077)
    reached = {"means": "bwrap", "network": True, "pid": True, "mounts": True, "root": True}
    serve(socket.socket(fileno=arguments["orders"]), reached, "", arguments["options"], arguments["seed"])


def serve(orders: socket.socket, reached: dict, base: str, options: dict, seed: int, start=attempt.start) -> None:
    """Runs the zygote loop in this process, its children ``start``; never returns."""
    reached["uid"], reached["lacks"] = None, []
    if os.geteuid() == 0:
        # A number of its own for each worker: the limit on processes counts those of the user, whoever started them.
        for user in (namespaces.USERS + seed % 4096, namespaces.NOBODY):
            if _can_be(user):
                reached["uid"] = user
                break
        else:
            reached["lacks"].append("change of user (nobody can not read this Python's library)")
    if not reached["network"]:
        reached["lacks"].append("network namespace")
    if not reached["pid"]:
        reached["lacks"].append("pid namespace")
    if not reached["root"]:
        reached["lacks"].append("private root (programs can read what their user may, and write where everybody may)")
    elif not os.path.isdir("/proc/self"):
        reached["lacks"].append("/proc")
    work = namespaces.WORK if reached["root"] else os.path.join(base, "attempt")
    zygote.Zygote(orders, reached, work, options["work_bytes"], start).run()
    os._exit(0)


def _can_be(user: int) -> bool:
    """Whether a process of that user can exist and import further modules."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            namespaces.drop_privileges(user)
            if any(os.path.exists(os.path.join(path, "abc.py")) for path in sys.path):
                status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# ---- one child


class Attempt:
    """This side of one child: what it prints, what it answers, how it ended."""

    def __init__(self, orders: socket.socket, request: dict, letter: bytes):
        self.orders, self.limits = orders, request["limits"]
        self.started = time.monotonic()
        self.deadline = self.started + self.limits["wall_seconds"]
        self.output, self.errors, self.answers = bytearray(), bytearray(), bytearray()
        self.overran = self.memory = False
        self.ended: dict | None = None
        self.control, child = socket.socketpair()
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe() if request.get("split") else (None, out_write)
        socket.send_fds(orders, [letter], [child.fileno(), out_write, err_write])
        child.close()
        for fd in {out_write, err_write}:
            os.close(fd)
        self.streams = {out_read: self.output}
        if err_read is not None:
            self.streams[err_read] = self.errors
        self.open = {self.control.fileno(), *self.streams}
        self.poll = select.poll()
        for fd in (*self.open, orders.fileno()):
            self.poll.register(fd, select.POLLIN)
        for fd in self.streams:
            os.set_blocking(fd, False)
        self.control.setblocking(False)
        self.watched = self.limits["processes"] > 1

    def ask(self, question: dict) -> dict:
        """Sends a question and waits for the answer.

        Raises:
          Ended: the child ended or its time is up.
          judge.Tampered: the answer is none.
        """
        self.tell(question)
        return self.answer()

    def tell(self, message: dict) -> None:
        data = memoryview(messages.framed(message))
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
        while True:
            if len(self.answers) >= 4:
                size = struct.unpack("<I", self.answers[:4])[0]
                if size > messages.LARGEST:
                    raise judge.Tampered
                if len(self.answers) >= 4 + size:
                    body = bytes(self.answers[4 : 4 + size])
                    del self.answers[: 4 + size]
                    try:
                        found = json.loads(body)
                    except (ValueError, RecursionError) as wrong:
                        raise judge.Tampered from wrong
                    if not isinstance(found, dict):
                        raise judge.Tampered
                    return found
            if self.ended is not None or self.control.fileno() not in self.open:
                self.wait_for_end()
                raise Ended
            self._wait()

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
        for fd, event in self.poll.poll(1000 * (min(left, WATCH) if self.watched else left)):
            if fd == self.orders.fileno():
                self._end()
            elif fd == self.control.fileno():
                if event & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    self._receive()
            else:
                self._drain(fd)
        if writing and self.control.fileno() in self.open:
            self.poll.modify(self.control.fileno(), select.POLLIN)
        if self.watched and self.ended is None and self._resident() > self.limits["memory_mb"] << 20:
            self.memory = True
            self.kill()
            raise Ended

    def _receive(self) -> None:
        try:
            data = self.control.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.answers += data
        else:
            self._close(self.control.fileno())

    def _drain(self, fd: int) -> bool:
        """Reads once; what is past the limit is dropped. False if there is nothing (more)."""
        buffer, limit = self.streams[fd], self.limits["output_bytes"] + 1
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
        self.ended = json.loads(data)

    def kill(self) -> None:
        """Ends the child; returns when nothing of it is left."""
        if self.ended is None:
            self.orders.send(b"K")
            self._end()

    def finish(self) -> None:
        """Ends the child if it is still there, takes the rest of its output and lets go of everything."""
        self.kill()
        for fd in self.streams:
            for _ in range(64):
                if fd not in self.open or not self._drain(fd):
                    break
            os.close(fd)
        if self.control.fileno() in self.open:
            self._receive()
        self.control.close()
        self.seconds = time.monotonic() - self.started

    def _resident(self) -> int:
        """Bytes of memory that all the program's processes have for themselves."""
        total = 0
        for pid in set(descendants(os.getpid())) - HELPERS:
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


# ---- requests


def run_python(orders: socket.socket, request: dict) -> dict:
    """Runs a program and judges its tests."""
    code, tests = request["code"], request["tests"]
    first = code.count("\n")
    lines = (code + tests).splitlines()
    steps = judge.steps(tests, judge.rebinds(code)) if tests else ()
    whole = steps is None  # tests that are no Python by themselves: one file, with all that this means
    sent = {"code": code + tests if whole else code, "limits": request["limits"]}
    sent |= {
        "script": request.get("script", False),
        "blank": tests.count("\n"),
        "stdin": request.get("stdin", ""),
        "split": request.get("split", False),
    }
    attempt = Attempt(orders, request, b"F")
    error, tail, status = "", None, "passed"
    try:
        answer = attempt.ask(sent)
        judge.checked(answer)
        if not answer.get("done"):
            raise judge.Tampered
        for step in steps or ():
            judge.examine(step, first, attempt.ask)
    except judge.Failed as failed:
        error = failed.error["type"]
        status = "memory" if error == "MemoryError" else "failed"
        tail = feedback.written(failed.error, lines)
    except judge.Tampered:
        status, error, tail = "crashed", "Tampered", "Crashed: the program spoke in the place of its harness\n"
    except Ended:
        status = ""
    attempt.finish()
    return _reply(attempt, status, error, tail)


def run_stages(orders: socket.socket, request: dict) -> dict:
    """Runs commands one after the other in one private directory, until one fails."""
    reply = {}
    files = request["files"]
    for number, stage in enumerate(request["stages"]):
        sent = {name: stage[name] for name in ("argv", "limits", "committed", "environment", "stdin")} | {
            "files": files
        }
        attempt = Attempt(orders, {"limits": stage["limits"], "split": True}, b"S")
        try:
            attempt.tell(sent)
            attempt.wait_for_end()
        except Ended:
            pass
        attempt.finish()
        code = (attempt.ended or {}).get("code")
        ordinary = isinstance(code, int) and code >= 0 and not attempt.overran and not attempt.memory
        status = ("passed" if code == 0 else "failed") if ordinary else ""
        error = "" if code == 0 else stage["error"] if ordinary else ""
        reply = _reply(attempt, status, error, "" if ordinary else None)
        reply |= {"stage": number, "code": code}
        files = {}
        if reply["status"] != "passed":
            break
    orders.send(b"C")
    return reply


def _reply(attempt: Attempt, status: str, error: str, tail: str | None) -> dict:
    limits = attempt.limits
    kept = limits["output_bytes"]
    texts = [bytes(part[:kept]).decode("utf-8", "replace") for part in (attempt.output, attempt.errors)]
    cut = len(attempt.output) > kept or len(attempt.errors) > kept
    text = texts[0] + texts[1]
    for place in (namespaces.WORK, os.path.join(BASE, "attempt")):
        text = text.replace(place, ".")
    text = feedback.ADDRESS.sub("0x...", text)
    if cut:
        text += "\n... output cut\n"
    ended = attempt.ended or {}
    if "lost" in ended:
        return {"status": "lost", "error": "", "feedback": f"sandbox: {ended['lost']}", "seconds": attempt.seconds}
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


def main() -> None:
    global BASE, HELPERS
    requests, replies, BASE = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    options = json.loads(sys.argv[4])
    os.umask(0o077)
    for fd in (requests, replies):
        os.set_inheritable(fd, False)
    orders, reached = isolate(BASE, options, (requests, replies))
    HELPERS = frozenset(descendants(os.getpid()))
    namespaces.close_to_others()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    messages.write_message(replies, reached)
    while (request := messages.read_message(requests)) is not None:
        try:
            reply = run_stages(orders, request) if "stages" in request else run_python(orders, request)
        except OSError as error:
            reply = {"status": "lost", "error": "", "feedback": f"sandbox: {error.strerror}", "seconds": 0.0}
        messages.write_message(replies, reply)
    orders.close()
    with contextlib.suppress(ChildProcessError):
        os.wait()
    with contextlib.suppress(OSError):
        os.rmdir(BASE)


BASE = ""
HELPERS: frozenset[int] = frozenset()  # the zygote and what stands between
if __name__ == "__main__":
    if sys.argv[1] == "--zygote":
        _zygote_in_bubblewrap(json.loads(sys.argv[2]))
    else:
        main()
