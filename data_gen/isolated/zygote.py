"""The zygote forks one child per program and tells how each ended.

It never reads a program: what a child inherits from it can not hold anything of an earlier one. Where there is a pid
namespace it is process 1 there, so that no program can signal it, and whatever a program leaves running dies with
``kill(-1)``.

The supervisor sends a letter, with file descriptors; when the child has ended it gets a datagram (``marshal``).

    F  make the private directory new if a program changed anything in it, and fork, with (control, ...) descriptors
    S  fork for the next step of the same program, which finds what the last one wrote
    K  kill the child that runs; without one, nothing

After a fork every page of memory that this process or the child writes to is copied first, which is most of what an
attempt costs. So both do little, call what was bound before, and raise no exceptions in the common case.
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import marshal
import os
import select
import socket
import time
from _signal import SIGKILL  # a number, no enumeration
from os import close, fork, kill, lstat, wait4

from data_gen.isolated import attempt, namespaces

MOST_DESCRIPTORS = 4
_POOL, _POOL_HEAD = 1 << 14, 48  # bytes, of CPython's allocator
pidfd_open = getattr(os, "pidfd_open", None)


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
        namespaces.renounce()
        # What is sent here shall have none of the numbers that it gets in a child.
        while os.open(os.devnull, os.O_RDONLY) < attempt.FIRST_FREE:
            pass
        self.clean()
        if self.start is attempt.start:
            attempt.prepare(self.work, dies_with_zygote=self.reached["pid"])
        self.poll = select.poll()
        self.poll.register(self.orders, select.POLLIN)
        receive, room = self.orders.recvmsg, socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize)
        self.kept = _settle_memory()
        self.orders.sendall(json.dumps(self.reached).encode())
        while True:
            letter, sent, _, _ = receive(16, room)
            if not letter:
                break
            if letter == b"F" and (self.clean_state is None or self.clean_state != self._state()):
                self.clean()
            if letter != b"K":
                self.fork(array.array("i", sent[0][2]))
        if not self.own_files:
            self.clean()
            os.rmdir(self.work)

    def fork(self, descriptors) -> None:
        """One child, until it has ended and nothing of it is left."""
        try:
            pid = fork()
        except OSError as error:
            for fd in descriptors:
                close(fd)
            self.orders.sendall(marshal.dumps({"lost": error.strerror}))
            return
        if pid == 0:
            try:
                self.start(descriptors, self.work, self.user)
            finally:
                os._exit(70)
        for fd in descriptors:
            close(fd)
        gone = self.wait(pid)
        alone = self.reached["pid"]  # process 1 here: everything else in the namespace is the program's
        if not alone:
            for end in (os.killpg, kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    end(pid, SIGKILL)
        _, status, usage = wait4(pid, 0)
        _end_the_rest(alone)
        if gone:
            raise SystemExit(0)
        self.orders.send(marshal.dumps((os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime)))

    def wait(self, pid: int) -> bool:
        """Returns when the child has ended or was killed; True if the supervisor is gone."""
        try:
            ended = pidfd_open(pid)
        except (OSError, TypeError):
            return self._wait_without_pidfd(pid)
        self.poll.register(ended, select.POLLIN)
        ready = self.poll.poll()
        self.poll.unregister(ended)
        close(ended)
        return self.told(pid) if ready[0][0] != ended else False

    def _wait_without_pidfd(self, pid: int) -> bool:
        while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if self.poll.poll(2):
                return self.told(pid)
        return False

    def told(self, pid: int) -> bool:
        """Kills the child, as the supervisor wants or because it is gone; True for the latter."""
        gone = not self.orders.recv(16)
        kill(pid, SIGKILL)
        return gone

    def clean(self) -> None:
        """Makes new what programs can write to."""
        if self.own_files:
            namespaces.detach(namespaces.TMP)
            if not namespaces.fresh_tmp(namespaces.TMP, self.size):
                self.own_files = False
        if not self.own_files:
            import shutil  # not before it is needed: its compression libraries make every fork dearer

            for _ in range(100):  # a process that is still dying may write once more
                shutil.rmtree(self.work, ignore_errors=True)
                if not os.path.lexists(self.work):
                    break
                time.sleep(0.01)
        os.mkdir(self.work, 0o700)
        if self.user is not None:
            os.chown(self.work, self.user, self.user)
        self.clean_state = self._state()

    def _state(self) -> tuple | None:
        """What can not stay the same when a program writes to its directories; None if that is not known."""
        try:
            work = lstat(self.work)
            if not self.own_files:
                return None if os.listdir(self.work) else (work.st_ino, work.st_mode, work.st_ctime_ns)
            tmp = lstat(namespaces.TMP)
        except OSError:
            return None
        # The size of a directory of a tmpfs counts its entries; the time is a second witness, for attributes.
        times = work.st_ctime_ns, tmp.st_ctime_ns
        return work.st_ino, work.st_mode, work.st_size, work.st_nlink, tmp.st_mode, tmp.st_size, tmp.st_nlink, times


def _settle_memory() -> list:
    """Leaves as little as can be that a child would have to copy: what is returned is to be kept.

    Memory for small objects comes in pools of 16 KiB of one size each. Of a pool that is partly in use at the fork a
    child that makes such an object copies two pages, that with the list of what is free and that with the object; of
    one that is empty a single page. So all pools are filled; none is left that is partly in use.
    """
    gc.collect()
    gc.freeze()
    kept = []
    for size in range(16, 513, 16):
        make = {16: object, 32: lambda: int("1234567")}.get(size, lambda size=size: bytes(size - 33))
        for _ in range(4 * _POOL // size):
            made = make()
            if id(made) % _POOL == _POOL_HEAD:  # the first one of a new pool, which is empty again without it
                break
            kept.append(made)
        del made
    namespaces.give_back_memory()
    return kept


def _end_the_rest(alone: bool) -> None:
    """Ends and takes in what the program left behind. Without a pid namespace orphans come to this process (it is their
    subreaper) and are killed one generation after the other."""
    while True:
        if alone:
            try:
                kill(-1, SIGKILL)
            except ProcessLookupError:
                return
        else:
            for pid in _children():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    kill(pid, SIGKILL)
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
