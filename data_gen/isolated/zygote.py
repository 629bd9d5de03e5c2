"""The zygote forks one child per program and tells how each ended.

It never reads a program: what a child inherits from it can not hold anything of an earlier one. Where there is a pid
namespace it is process 1 there, so that no program can signal it, and whatever a program leaves running dies with
``kill(-1)``.

The supervisor sends a letter, with file descriptors; the answer is one JSON datagram when the child has ended:

    F  fork, with (control, stdout, stderr); afterwards the private directory is made new
    S  the same, and the directory stays for the next stage
    C  make the private directory new; no answer
    K  kill the child that runs; without one, nothing
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import shutil
import signal
import socket
import stat
import time

from data_gen.isolated import attempt, namespaces


class Zygote:
    """State of the loop.

    Attributes:
      orders: datagram socket to the supervisor.
      reached: what isolation holds, as ``namespaces`` found out.
      work: the private writable directory.
      size: bytes that files in it may take together, where it is a file system of its own.
      user: number of the user that children become, None: they stay who they are.
      start: what a child does, (descriptors, private directory, user); it never returns.
    """

    def __init__(self, orders: socket.socket, reached: dict, work: str, size: int, start=attempt.start):
        self.start = start
        self.orders, self.reached, self.work, self.size = orders, reached, work, size
        self.user = reached["uid"]
        self.own_files = reached["root"]

    def run(self) -> None:
        """Serves until the supervisor is gone."""
        namespaces.close_to_others()
        namespaces.adopt_orphans()
        self.clean(whole=True)
        gc.collect()
        gc.freeze()
        self.orders.sendall(json.dumps(self.reached).encode())
        while True:
            letter, descriptors, _, _ = socket.recv_fds(self.orders, 16, 3)
            if not letter:
                break
            if letter in (b"F", b"S"):
                self.fork(descriptors, keep=letter == b"S")
            elif letter == b"C":
                self.clean(whole=True)
        shutil.rmtree(self.work, ignore_errors=True)

    def fork(self, descriptors, keep: bool) -> None:
        """One child, until it has ended and nothing of it is left."""
        try:
            pid = os.fork()
        except OSError as error:
            for fd in descriptors:
                os.close(fd)
            self.orders.sendall(json.dumps({"lost": error.strerror}).encode())
            return
        if pid == 0:
            try:
                self.start(descriptors, self.work, self.user)
            finally:
                os._exit(70)
        for fd in descriptors:
            os.close(fd)
        gone = self.wait(pid)
        _, status, usage = os.wait4(pid, 0)
        if self.reached["pid"]:  # process 1 here: everything that is left in the namespace is the program's
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
        _reap(self.reached["pid"])
        if not keep:
            self.clean()
        if gone:
            raise SystemExit(0)
        ended = {"code": os.waitstatus_to_exitcode(status), "cpu": usage.ru_utime + usage.ru_stime}
        self.orders.sendall(json.dumps(ended).encode())

    def wait(self, pid: int) -> bool:
        """Returns when the child has ended or was killed; True if the supervisor is gone."""
        poll = select.poll()
        poll.register(self.orders, select.POLLIN)
        try:
            ended = os.pidfd_open(pid)
        except (AttributeError, OSError):
            ended = None
        else:
            poll.register(ended, select.POLLIN)
        gone = False
        while True:
            ready = [fd for fd, _ in poll.poll(2 if ended is None else None)]
            if self.orders.fileno() in ready:
                gone = not self.orders.recv(16)
                break
            if ended in ready or (ended is None and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
                break
        for kill, target in ((os.killpg, pid), (os.kill, pid)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(target, signal.SIGKILL)
        if ended is not None:
            os.close(ended)
        return gone

    def clean(self, whole: bool = False) -> None:
        """Empties what programs can write to. Nothing to do after most of them."""
        if not whole and self._untouched():
            return
        if self.own_files:
            namespaces.detach(namespaces.TMP)
            if not namespaces.fresh_tmp(namespaces.TMP, self.size):
                self.own_files = False
        if not self.own_files:
            for _ in range(100):  # a process that is still dying may write once more
                shutil.rmtree(self.work, ignore_errors=True)
                if not os.path.lexists(self.work):
                    break
                time.sleep(0.01)
        os.mkdir(self.work, 0o700)
        if self.user is not None:
            os.chown(self.work, self.user, self.user)

    def _untouched(self) -> bool:
        try:
            with os.scandir(self.work) as left:
                if any(True for _ in left):
                    return False
            if self.own_files and os.listdir(namespaces.TMP) != [os.path.basename(self.work)]:
                return False
            found = os.lstat(self.work)
        except OSError:
            return False
        return stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o700


def _reap(alone: bool) -> None:
    """Takes in what the program left behind. Without a pid namespace orphans come to this process (it is their
    subreaper) and are killed one generation after the other."""
    while True:
        if not alone:
            for pid in _children():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        try:
            if os.waitpid(-1, 0)[0] == 0:
                return
        except ChildProcessError:
            return


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []
