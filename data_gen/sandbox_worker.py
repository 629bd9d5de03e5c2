"""The zygote: a small interpreter that forks one child per program. Run by ``sandbox.py``; standard library only.

    python -S -s -P -B sandbox_worker.py REQUEST_FD REPLY_FD BASE_DIRECTORY

Requests and replies are JSON behind a four-byte length. Where the system allows it, the zygote is process 1 of its own
pid namespace (so programs can neither see nor signal it, and what they leave running dies with ``kill(-1)``), has no
network, and its children run as ``nobody``. What is lacking is told in the first message, never hidden.

Harness of a child: code and tests are compiled as one file ``attempt.py``. Only when the last line has run does it
send ``passed``, with a nonce that was drawn after the program came in; leaving early by any way is no pass.
"""

from __future__ import annotations

# Modules that attempts often import are loaded here once; a fork then has them for nothing.
import ast
import bisect  # noqa: F401
import collections  # noqa: F401
import contextlib
import copy  # noqa: F401
import ctypes
import datetime  # noqa: F401
import functools  # noqa: F401
import gc
import heapq  # noqa: F401
import io
import itertools  # noqa: F401
import json
import math
import operator  # noqa: F401
import os
import random
import re
import resource
import select
import shutil
import signal
import string  # noqa: F401
import struct
import sys
import time
import typing  # noqa: F401

FILE = "attempt.py"
NOBODY = 65534
SHOWN = 60  # characters of a value in "got ..., expected ..."
ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")
MESSAGE = 300  # characters of an exception's message
MAX_FRAMES = 5
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x20000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38


def _libc():
    try:
        return ctypes.CDLL(None, use_errno=True)
    except OSError:
        return None


LIBC = _libc()


# ---- messages


def read_message(fd: int):
    """The next message, None at the end of the stream."""
    header = _read_exactly(fd, 4)
    if header is None:
        return None
    body = _read_exactly(fd, struct.unpack("<I", header)[0])
    return None if body is None else json.loads(body)


def _read_exactly(fd: int, count: int):
    parts = []
    while count:
        part = os.read(fd, count)
        if not part:
            return None
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def write_message(fd: int, message) -> None:
    """Writes one message."""
    body = json.dumps(message).encode()
    data = memoryview(struct.pack("<I", len(body)) + body)
    while data:
        data = data[os.write(fd, data) :]


# ---- isolation


def isolate(base: str) -> dict:
    """Puts this process into namespaces of its own as far as the system lets it; returns what was reached.

    After a pid namespace was made, the caller must fork: its first child is process 1 there.
    """
    reached = {"network": False, "pid": False, "user": "", "lacks": []}
    root = os.geteuid() == 0
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWNET | (0 if root else CLONE_NEWUSER)
    mounts = reached["network"] = _unshare(flags)
    if mounts and not root:
        try:
            for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
        except OSError:
            reached["lacks"].append("user namespace mapping")
    elif not mounts and root:
        reached["network"] = _unshare(CLONE_NEWNET)
    if root:
        if not _nobody_reads_library() and mounts:
            _bind_library(base)
        if _nobody_reads_library():
            reached["user"] = "nobody"
        else:
            reached["lacks"].append("change of user (nobody can not read this Python's library)")
    else:
        reached["user"] = "own"
    # Last: the first child behind it is process 1 of the namespace, and that must be the zygote itself.
    reached["pid"] = _unshare(CLONE_NEWPID)
    if not reached["network"]:
        reached["lacks"].append("network namespace")
    if not reached["pid"]:
        reached["lacks"].append("pid namespace")
    return reached


def _unshare(flags: int) -> bool:
    return LIBC is not None and hasattr(LIBC, "unshare") and LIBC.unshare(flags) == 0


def _nobody_reads_library() -> bool:
    """Whether a process of user nobody can import further modules."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            drop_privileges()
            if any(os.path.exists(os.path.join(path, "abc.py")) for path in sys.path):
                status = 0
        except BaseException:
            status = 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _bind_library(base: str) -> None:
    """Shows the library, which may lie in somebody's home directory, at a place that nobody can reach."""
    target = os.path.join(base, "python")
    source = os.path.dirname(os.__file__)
    os.makedirs(target, exist_ok=True)
    if LIBC.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        return
    if LIBC.mount(source.encode(), target.encode(), None, MS_BIND | MS_REC, None) != 0:
        return
    LIBC.mount(None, target.encode(), None, MS_BIND | MS_REMOUNT | MS_RDONLY, None)

    def moved(paths):
        return [path.replace(source, target, 1) if path.startswith(source) else path for path in paths]

    sys.path[:] = moved(sys.path)
    sys.path_importer_cache.clear()
    for module in list(sys.modules.values()):  # packages that are loaded look for their submodules where they lay
        if isinstance(getattr(module, "__path__", None), list):
            module.__path__[:] = moved(module.__path__)


def drop_privileges() -> None:
    """Becomes nobody for good."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


# ---- the zygote


def main() -> None:
    requests, replies, base = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    os.umask(0o077)
    reached = isolate(base)
    if reached["pid"]:
        pid = os.fork()
        if pid:
            os.close(requests)
            os.close(replies)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 255)
        _die_with_parent()
    gc.collect()
    gc.freeze()
    write_message(replies, reached)
    number = 0
    while (request := read_message(requests)) is not None:
        number += 1
        try:
            reply = supervise(request, os.path.join(base, f"run{number}"), reached, (requests, replies))
        except OSError as error:
            reply = {"status": "lost", "error": "", "feedback": f"sandbox: {error.strerror}", "seconds": 0.0}
        write_message(replies, reply)
    _clean(base)


def _clean(base: str) -> None:
    """Removes the base directory in case the parent was killed. By rmdir alone: the library is mounted in it."""
    library = os.path.join(base, "python")
    if os.path.isdir(library):
        LIBC.umount2(library.encode(), MNT_DETACH)
    for directory in (library, base):
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def _die_with_parent() -> None:
    if LIBC is not None and hasattr(LIBC, "prctl"):
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def supervise(request: dict, directory: str, reached: dict, private: tuple) -> dict:
    """Runs one program in a child and tells how it went."""
    limits = request["limits"]
    nobody = reached["user"] == "nobody"
    os.mkdir(directory, 0o700)
    if nobody:
        os.chown(directory, NOBODY, NOBODY)
    nonce = os.urandom(16).hex()
    output_read, output_write = os.pipe()
    verdict_read, verdict_write = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        try:
            for fd in (*private, output_read, verdict_read):
                os.close(fd)
            child(request, directory, nobody, nonce, output_write, verdict_write)
        finally:
            os._exit(70)
    os.close(output_write)
    os.close(verdict_write)
    output, verdict, overran = _watch(pid, output_read, verdict_read, limits, started)
    _kill_group(pid)
    _, status, usage = os.wait4(pid, 0)
    if reached["pid"]:  # process 1 here: everything that is left in the namespace is the program's
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        _reap()
    seconds = time.monotonic() - started
    for fd in (output_read, verdict_read):
        os.close(fd)
    try:
        os.rmdir(directory)
    except OSError:
        shutil.rmtree(directory, ignore_errors=True)
    used = usage.ru_utime + usage.ru_stime
    output = output.replace(directory.encode(), b".")
    return _reply(output, verdict, nonce, os.waitstatus_to_exitcode(status), overran, used, limits, seconds)


def _kill_group(pid: int) -> None:
    """Kills the child and everything in its process group."""
    for kill, target in ((os.killpg, pid), (os.kill, pid)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(target, signal.SIGKILL)


def _reap() -> None:
    while True:
        try:
            if os.waitpid(-1, 0)[0] == 0:
                return
        except ChildProcessError:
            return


def _watch(pid: int, output_fd: int, verdict_fd: int, limits: dict, started: float):
    """Collects output and verdict until the child ends or its wall time is up: (output, verdict, overran)."""
    output, verdict = bytearray(), bytearray()
    poll = select.poll()
    open_fds = {output_fd, verdict_fd}
    for fd in open_fds:
        os.set_blocking(fd, False)
        poll.register(fd, select.POLLIN)
    try:
        ended_fd = os.pidfd_open(pid)
        poll.register(ended_fd, select.POLLIN)
    except (AttributeError, OSError):
        ended_fd = None
    keep = {output_fd: (output, limits["output_bytes"] + 1), verdict_fd: (verdict, 1 << 20)}
    deadline = started + limits["wall_seconds"]
    ended = overran = False
    while not ended:
        left = deadline - time.monotonic()
        if left <= 0:
            overran = True
            break
        for fd, _ in poll.poll(left * 1000):
            if fd == ended_fd:
                ended = True
            elif fd in open_fds and not _drain(fd, *keep[fd]):
                poll.unregister(fd)
                open_fds.discard(fd)
                ended = ended or (ended_fd is None and fd == verdict_fd)
        ended = ended or (ended_fd is None and not open_fds)
    for fd in open_fds:
        _drain(fd, *keep[fd])
    if ended_fd is not None:
        os.close(ended_fd)
    return bytes(output), bytes(verdict), overran


def _drain(fd: int, buffer: bytearray, limit: int) -> bool:
    """Reads once, or at most one pipe's worth; False at the end of the stream. What is past ``limit`` is dropped."""
    try:
        data = os.read(fd, 1 << 16)
    except BlockingIOError:
        return True
    buffer += data[: max(0, limit - len(buffer))]
    return bool(data)


def _reply(output, verdict, nonce, code, overran, used, limits, seconds) -> dict:
    text = output[: limits["output_bytes"]].decode("utf-8", "replace")
    text = ADDRESS.sub("0x...", text)
    if len(output) > limits["output_bytes"]:
        text += "\n... output cut\n"
    try:
        message = json.loads(verdict)
        genuine = isinstance(message, dict) and message.get("nonce") == nonce
    except ValueError:
        message, genuine = {}, False
    reply = {"status": "", "error": "", "feedback": text, "seconds": seconds}
    if genuine and code == 0:
        reply["status"], reply["error"] = message["status"], message["error"]
        tail = message["traceback"]
    elif overran:
        reply["status"], reply["error"] = "timeout", "TimeoutError"
        tail = f"TimeoutError: no result within {limits['wall_seconds']:g} s\n"
    elif code in (-signal.SIGPROF, -signal.SIGXCPU) or (code == -signal.SIGKILL and used >= limits["cpu_seconds"]):
        reply["status"], reply["error"] = "timeout", "TimeoutError"
        tail = f"TimeoutError: no result within {limits['cpu_seconds']:g} s\n"
    elif code < 0:
        reply["status"], reply["error"] = "crashed", signal.Signals(-code).name
        tail = f"Crashed: killed by {signal.Signals(-code).name}\n"
    else:
        reply["status"], reply["error"] = "crashed", "Exit"
        tail = f"Exit: the program ended with status {code} before its tests\n"
    if text and tail and not text.endswith("\n"):
        text += "\n"
    reply["feedback"] = text + tail
    return reply


# ---- the child


def child(request: dict, directory: str, nobody: bool, nonce: str, output_fd: int, verdict_fd: int) -> None:
    """Runs the program. Never returns."""
    limits = request["limits"]
    os.setsid()
    os.chdir(directory)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(output_fd, 1)
    os.dup2(output_fd, 2)
    os.dup2(verdict_fd, 3)
    os.closerange(4, 256)
    if nobody:
        drop_privileges()
    _die_with_parent()
    if LIBC is not None and hasattr(LIBC, "prctl"):
        LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    whole = math.ceil(limits["cpu_seconds"])
    memory = limits["memory_mb"] << 20
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, whole, whole + 1),
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, limits["file_bytes"], limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"], limits["open_files"]),
        (resource.RLIMIT_NPROC, limits["processes"], limits["processes"]),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(kind, (soft, hard))
    # A fraction of a second can be limited only by a timer; RLIMIT_CPU stands behind it in whole seconds.
    signal.setitimer(signal.ITIMER_PROF, limits["cpu_seconds"])
    random.seed(0)  # a fork seeds it anew; so attempts that draw at random see the same numbers in every run
    os.environ.clear()
    os.environ.update(HOME=directory, PATH="/usr/bin:/bin", TMPDIR=directory)
    sys.argv[:] = [FILE]
    sys.stdin = io.TextIOWrapper(io.FileIO(0, "r", closefd=False))
    writer = io.BufferedWriter(io.FileIO(1, "w", closefd=False))
    sys.stdout = io.TextIOWrapper(writer, "utf-8", "backslashreplace", write_through=True)
    sys.stderr = sys.stdout
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    for name in ("__main__", "sandbox_worker"):
        sys.modules.pop(name, None)
    # What the harness still needs when the program is done, kept from the program's reach by plain names.
    leave, send, dumps = os._exit, os.write, json.dumps
    source = request["source"]
    status, error, traceback = execute(source)
    with contextlib.suppress(BaseException):
        writer.flush()
    message = dumps({"nonce": nonce, "status": status, "error": error, "traceback": traceback}).encode()
    while message:
        message = message[send(3, message) :]
    leave(0)


def execute(source: str):
    """Runs ``source`` as a module of its own: (status, name of the exception, traceback)."""
    module = type(sys)("__main__")
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = module
    try:
        exec(compile(source, FILE, "exec"), module.__dict__)
    except MemoryError as error:
        return "memory", "MemoryError", describe(error, source, module.__dict__)
    except BaseException as error:
        return "failed", type(error).__name__, describe(error, source, module.__dict__)
    return "passed", "", ""


def describe(error: BaseException, source: str, namespace: dict) -> str:
    """A short traceback: frames of the program only, no marker lines, no paths or addresses of this machine."""
    lines = source.splitlines()
    message = _message(error)
    if isinstance(error, SyntaxError) and error.filename == FILE:
        where = f'  File "{FILE}", line {error.lineno}\n'
        text = (lines[error.lineno - 1] if error.lineno and error.lineno <= len(lines) else "").strip()
        return where + (f"    {text}\n" if text else "") + f"{type(error).__name__}: {error.msg}\n"
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename == FILE:
            frames.append((trace.tb_lineno, code.co_name))
        trace = trace.tb_next
    if isinstance(error, AssertionError) and not message and frames and frames[-1][1] == "<module>":
        message = _compared(source, frames[-1][0], namespace)
    shown = []
    for number, (line, name) in enumerate(frames):
        if len(frames) > MAX_FRAMES and 2 <= number < len(frames) - 2:
            if number == 2:
                shown.append("  ...\n")
            continue
        text = lines[line - 1].strip() if line <= len(lines) else ""
        shown.append(f'  File "{FILE}", line {line}, in {name}\n' + (f"    {text}\n" if text else ""))
    name = type(error).__name__
    last = f"{name}: {message}\n" if message else f"{name}\n"
    return "Traceback (most recent call last):\n" + "".join(shown) + last


def _message(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException:
        return ""
    return scrub(text if len(text) <= MESSAGE else text[:MESSAGE] + "...")


def scrub(text: str) -> str:
    """``text`` without addresses and paths of this machine."""
    text = ADDRESS.sub("0x...", text)
    for place, name in ((os.getcwd(), "."), (os.path.dirname(os.__file__), "<python>"), (sys.prefix, "<python>")):
        if len(place) > 1:
            text = text.replace(place, name)
    return text


def _compared(source: str, line: int, namespace: dict) -> str:
    """What the failed ``assert a == b`` at ``line`` compared; both sides are computed once more for it."""
    try:
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assert) and node.lineno <= line <= (node.end_lineno or node.lineno):
                test = node.test
                if not (isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq)):
                    return ""
                sides = []
                for side in (test.left, test.comparators[0]):
                    sides.append(eval(compile(ast.Expression(side), FILE, "eval"), namespace))
                if sides[0] == sides[1]:
                    return ""
                # Scrubbed first: an address that is cut short is none that scrubbing would know.
                got, expected = (_short(scrub(repr(side))) for side in sides)
                return f"got {got}, expected {expected}"
    except BaseException:
        return ""
    return ""


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


if __name__ == "__main__":
    main()
