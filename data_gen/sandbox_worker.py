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
import functools  # noqa: F401
import heapq  # noqa: F401
import itertools  # noqa: F401
import json
import math  # noqa: F401
import operator  # noqa: F401
import os
import re  # noqa: F401
import resource
import socket
import string  # noqa: F401
import sys
import typing  # noqa: F401

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.append(ROOT)  # for the imports below alone: programs shall not see our packages
# `random` would seed itself anew in every fork, at the price of a tenth of an attempt; attempts want the same seed.
_register, os.register_at_fork = os.register_at_fork, lambda **_: None
import random  # noqa: E402, F401

os.register_at_fork = _register
from data_gen.isolated import attempt, messages, namespaces, zygote  # noqa: E402

sys.path.remove(ROOT)
sys.path_importer_cache.clear()

MEMORY = 4 << 30  # address space of this process: an answer that would take more is refused, not swallowed


# ---- isolation


def isolate(base: str, options: dict, pipes: tuple) -> tuple[socket.socket, dict]:
    """Starts the zygote with all the isolation that this system lets it have: (socket to it, what was reached).

    OPTIONS: ``means``: ways to try, in this order, of "bwrap", "namespaces", "limits"; ``readable``: further paths that
    programs may read; ``work_bytes``: size of the private directory.
    """
    last = ""
    for means in options["means"]:
        if means == "bwrap" and not any(os.access(f"{place}/bwrap", os.X_OK) for place in os.defpath.split(":")):
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


def confine(orders: socket.socket, means: str, base: str, options: dict) -> dict:
    """Enters namespaces and a private root, as far as they are to be had (and ``means`` wants them): what was reached.

    Behind a pid namespace it is a child that returns, process 1 there; the caller stays and ends with it.
    """
    reached = {"means": means, "network": False, "pid": False, "mounts": False, "root": False}
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
    return reached


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
        seed = os.getpid()
        reached = confine(orders, means, base, options)
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
    work = private_directory(reached, base)
    zygote.Zygote(orders, reached, work, options["work_bytes"], start).run()
    os._exit(0)


def private_directory(reached: dict, base: str) -> str:
    """Where programs may write."""
    return namespaces.WORK if reached["root"] else os.path.join(base, "attempt")


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


def main() -> None:
    requests, replies, base = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    options = json.loads(sys.argv[4])
    os.umask(0o077)
    for fd in (requests, replies):
        os.set_inheritable(fd, False)
    orders, reached = isolate(base, options, (requests, replies))
    # Only now, and so not in the zygote: every module that it holds makes every fork dearer.
    sys.path.append(ROOT)
    from data_gen.isolated import supervisor

    namespaces.close_to_others()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    messages.write_message(replies, reached)
    supervisor.serve(orders, requests, replies, base)
    orders.close()
    with contextlib.suppress(ChildProcessError):
        os.wait()
    with contextlib.suppress(OSError):
        os.rmdir(base)


if __name__ == "__main__":
    if sys.argv[1] == "--zygote":
        _zygote_in_bubblewrap(json.loads(sys.argv[2]))
    else:
        main()
