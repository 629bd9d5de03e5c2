"""What keeps a program inside: namespaces, a private root, a user without rights, limits. Linux only.

Each step tells whether it was reached; nothing that failed is passed over in silence. See docs/sandbox.md.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import struct
import sys
from os import setgroups, setresgid, setresuid
from resource import setrlimit

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER = 1, 4, 24, 36
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 38, 47
CAPABILITY_VERSION = 0x20080522
NOBODY = 65534
USERS = 61184  # 4,096 numbers from here on belong to nobody on any distribution (systemd keeps them for such use)
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc")
DEVICES = ("null", "zero", "full", "random", "urandom")
TMP = "/tmp"
WORK = "/tmp/attempt"  # the private writable directory of a program


def _libc():
    try:
        return ctypes.CDLL(None, use_errno=True)
    except OSError:
        return None


LIBC = _libc()


def _call(name: str, *arguments) -> bool:
    function = getattr(LIBC, name, None) if LIBC is not None else None
    return function is not None and function(*arguments) == 0


def mount(source, target: str, kind, flags: int, data=None) -> bool:
    """mount(2); texts or None."""

    def text(value):
        return None if value is None else os.fsencode(value)

    return _call("mount", text(source), text(target), text(kind), ctypes.c_ulong(flags), text(data))


def library() -> list[str]:
    """Directories that this Python needs, where they are not part of the system."""
    places = [os.path.realpath(sys.base_prefix), os.path.dirname(os.path.realpath(os.__file__))]
    return [place for place in places if place != "/" and not _within(place, "/usr")]


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def visible(readable) -> list[str]:
    """What a private root shows, read-only: the system, this Python, ``readable``; nothing that lies in another one."""
    chosen: list[str] = []
    for path in sorted({*SYSTEM, *library(), *(os.path.realpath(path) for path in readable)}):
        if os.path.lexists(path) and not any(_within(path, other) for other in chosen):
            chosen.append(path)
    return chosen


# ---- namespaces


def unshare(flags: int) -> bool:
    """unshare(2)."""
    return _call("unshare", flags)


def enter(reached: dict) -> None:
    """Puts this process into namespaces of its own. The next child that it forks is process 1 of the pid namespace."""
    root = os.geteuid() == 0
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWUTS
    if unshare(flags | (0 if root else CLONE_NEWUSER)):
        reached["mounts"] = reached["network"] = True
        if not root:
            try:
                for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                    with open(f"/proc/self/{name}", "w") as file:
                        file.write(text)
            except OSError:
                reached["mounts"] = False
    else:
        reached["network"] = unshare(CLONE_NEWNET)
    reached["pid"] = unshare(CLONE_NEWPID)


def private_root(base: str, readable, size: int) -> bool:
    """Makes ``base`` the root of this mount namespace: the system and ``readable`` read-only, a writable /tmp, own
    /proc and /dev, nothing else of this machine. False if the system does not let it; the old root stays then.

    Args:
      base: an empty directory.
      readable: further paths to show.
      size: bytes that all files in /tmp together may take.
    """
    if not mount(None, "/", None, MS_REC | MS_PRIVATE):
        return False
    if not mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m"):
        return False
    mask = os.umask(0o022)
    try:
        shown = all(_show(base, path) for path in visible(readable)) and _devices(base)
        for name in ("proc", "tmp"):
            os.makedirs(f"{base}/{name}", exist_ok=True)
    except OSError:
        shown = False
    finally:
        os.umask(mask)
    if not shown or not fresh_tmp(base + TMP, size):
        detach(base)
        return False
    mount("proc", f"{base}/proc", "proc", MS_NOSUID | MS_NODEV | 8)  # 8: noexec. Not everywhere allowed; checked later
    mount(None, base, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir(base)
    if not _call("pivot_root", b".", b"."):
        os.chdir("/")
        detach(base)
        return False
    detach(".")
    os.chdir("/")
    return True


def _show(base: str, path: str) -> bool:
    """Binds ``path`` read-only. Its parents are directories of our own, so a home directory that is closed to others
    does not hide a toolchain that lies in it, and shows nothing else."""
    target = base + path
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return True
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        with open(target, "w"):
            pass
    if not mount(path, target, None, MS_BIND | MS_REC):
        return False
    attributes = struct.pack("<QQQQ", MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)  # MOUNT_ATTR_*: the same numbers
    if LIBC.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, os.fsencode(target), AT_RECURSIVE, attributes, len(attributes)) == 0:
        return True
    kept = os.statvfs(target).f_flag & ~MS_RDONLY & 0xF  # kernels before 5.12; a user must keep flags that are locked
    return mount(None, target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | kept)


def _devices(base: str) -> bool:
    os.makedirs(f"{base}/dev", exist_ok=True)
    for name in DEVICES:
        with open(f"{base}/dev/{name}", "w"):
            pass
        if not mount(f"/dev/{name}", f"{base}/dev/{name}", None, MS_BIND):
            return False
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target, f"{base}/dev/{name}")
    return True


def detach(place: str) -> bool:
    """Takes the file system at ``place`` away, also while it is in use."""
    return _call("umount2", os.fsencode(place), MNT_DETACH)


def fresh_tmp(place: str, size: int) -> bool:
    """Mounts an empty file system in memory at ``place``, instead of one that may be there."""
    return mount("tmpfs", place, "tmpfs", MS_NOSUID | MS_NODEV, f"mode=1777,size={size},nr_inodes=20000")


def bubblewrap(command, readable, size: int) -> list[str]:
    """The command line that starts ``command`` under bubblewrap with the same view of the system."""
    line = ["bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--die-with-parent"]
    line += ["--as-pid-1", "--proc", "/proc", "--dev", "/dev", "--size", str(size), "--tmpfs", TMP, "--chdir", "/"]
    if os.geteuid() != 0:
        line += ["--unshare-user", "--uid", str(os.geteuid()), "--gid", str(os.getegid())]
    for name in ("SYS_ADMIN", "SETUID", "SETGID", "CHOWN", "KILL", "DAC_OVERRIDE", "FOWNER", "SETPCAP", "SYS_RESOURCE"):
        line += ["--cap-add", f"CAP_{name}"]
    for path in visible(readable):
        for parent in _parents(path):
            line += ["--perms", "0755", "--dir", parent]
        line += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
    return [*line, "--remount-ro", "/", "--", *command]


def _parents(path: str) -> list[str]:
    parts = path.strip("/").split("/")[:-1]
    return ["/" + "/".join(parts[: number + 1]) for number in range(len(parts))]


# ---- the child


def die_with_parent() -> None:
    """SIGKILL for this process when its parent dies."""
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def adopt_orphans() -> None:
    """Processes below this one whose parents die become its children."""
    _call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def close_to_others() -> None:
    """Other processes of the same user may neither trace this one nor read its memory."""
    _call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)


def give_back_memory() -> None:
    """Returns free memory of the C library to the system, where the library can."""
    if hasattr(LIBC, "malloc_trim"):
        LIBC.malloc_trim(0)


def renounce() -> None:
    """Neither this process nor a child of it can ever gain rights that it does not have now."""
    for capability in range(41):
        _call("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0)
    _call("prctl", PR_CAP_AMBIENT, 4, 0, 0, 0)  # 4: clear all
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def drop_privileges(user: int | None) -> None:
    """Becomes ``user`` for good, which costs every capability; None: stays who it is and gives them away."""
    if user is not None:
        setgroups([])
        setresgid(user, user, user)
        setresuid(user, user, user)
    else:
        _call("capset", struct.pack("<Ii", CAPABILITY_VERSION, 0), bytes(24))


def resource_limits(limits: dict, committed: bool = False) -> list[tuple[int, int, int]]:
    """(number, soft, hard) of each resource limit, for ``limit``.

    Args:
      limits: the fields of ``sandbox.Limits``.
      committed: limit memory that can be written to instead of address space: for runtimes that reserve far more
        addresses than they use (JVM, V8, Go).
    """
    whole = math.ceil(limits["cpu_seconds"])
    memory = limits["memory_mb"] << 20
    return [
        (resource.RLIMIT_CPU, whole, whole + 1),
        (resource.RLIMIT_DATA if committed else resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, limits["file_bytes"], limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"], limits["open_files"]),
        (resource.RLIMIT_NPROC, limits["processes"], limits["processes"]),
        (resource.RLIMIT_CORE, 0, 0),
    ]


def limit(limits: list[tuple[int, int, int]]) -> None:
    """Sets resource limits of this process and its children."""
    for kind, soft, hard in limits:
        try:
            setrlimit(kind, (soft, hard))
        except (OSError, ValueError):  # an ordinary user can only lower a hard limit
            present = resource.getrlimit(kind)[1]
            if present == resource.RLIM_INFINITY:  # it is something else; and -1 is less than any limit
                raise
            setrlimit(kind, (min(soft, present), min(hard, present)))
