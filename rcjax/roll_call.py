"""The roll is called before ``jax.distributed`` starts: are all processes there, and do all run the same?

JAX's coordination service aborts a process whose fellows do not come, and does not say who is missing; and it lets
processes with other settings join, which then wait for each other for ever or train on nonsense. So process 0 first
listens on the coordinator's port itself. The others tell it who they are and what they run; when all are there, or
time is up, it tells everybody the verdict and leaves the port to JAX.

Everybody sends one line of JSON and gets one line back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import selectors
import socket
import time
from collections.abc import Mapping
from typing import Any

LINE_BYTES = 2**20  # nobody has more to say
RETRY_SECONDS = 0.2
GRACE_SECONDS = 5.0  # so long are the others waited for once it is known that the run is refused


class RollCallError(ValueError):
    """Processes that can not run together; one sentence with the mend, the same for all that came."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One process of a run.

    Attributes:
      process, num_processes: its number, and how many there are to be, as it was told.
      host: the machine's name.
      cores: that this process may use.
      facts: what must be the same for all, by its name.
    """

    process: int
    num_processes: int
    host: str
    cores: int
    facts: Mapping[str, Any]

    def __str__(self) -> str:
        return f"process {self.process} ({self.host})"


@dataclasses.dataclass(frozen=True)
class Seat:
    """What everybody learns of a process: its machine, and the cores that it may use."""

    host: str
    cores: int


def call_roll(address: str, member: Member, timeout: float) -> list[Seat]:
    """Waits until all processes are there; returns a seat for each, by number.

    Args:
      address: HOST:PORT of process 0.
      timeout: seconds.

    Raises:
      RollCallError: processes are missing (named), come twice, or do not agree (the field is named); the port is in
        use, or process 0 does not answer.
    """
    host, port = split_address(address)
    seats = _lead(port, member, timeout) if member.process == 0 else _answer(host, port, member, timeout)
    return [Seat(**seat) for seat in seats]


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise RollCallError(f"--coordinator={address} is no address; expected HOST:PORT, e.g. 10.0.0.2:8476")
    return host.strip("[]"), int(port)


# ---- process 0


def _lead(port: int, member: Member, timeout: float) -> list[dict[str, Any]]:
    """Takes answers until all are there, and sends the verdict to all that came."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(port))
        members, connections, complaint = _collect(server, member, timeout, stack)
        missing = sorted(set(range(member.num_processes)) - members.keys())
        if complaint is None and missing:
            complaint = (
                f"{_numbered(missing)} did not join within {timeout:.0f} s; see why in the output of the missing, that "
                "as many were started as --num_processes says, and that they reach "
                f"{member.host} port {port} (--join_timeout waits longer)"
            )
        seats = [dataclasses.asdict(Seat(m.host, m.cores)) for _, m in sorted(members.items())]
        verdict = json.dumps({"refused": complaint} if complaint else {"seats": seats}) + "\n"
        for connection in connections:
            with contextlib.suppress(OSError):  # it is gone; JAX will miss it
                connection.settimeout(GRACE_SECONDS)
                connection.sendall(verdict.encode())
                connection.recv(1)  # the other end closes first, so that the port is free at once
    if complaint:
        raise RollCallError(complaint)
    return seats


def _listen(port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, backlog=1024, dualstack_ipv6=both
        )
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise RollCallError(f"port {port} can not be listened on ({error.strerror}); name another one") from error
        raise RollCallError(
            f"port {port} of the coordinator is in use, perhaps by an earlier run that has not ended; end it, or name "
            "another port with --coordinator=HOST:PORT (JAX_COORDINATOR_PORT=PORT with --distributed)"
        ) from error


def _collect(
    server: socket.socket, member: Member, timeout: float, stack: contextlib.ExitStack
) -> tuple[dict[int, Member], list[socket.socket], str | None]:
    """Members by number, connections of all that came, and the first complaint."""
    members, connections, complaint = {0: member}, [], None
    deadline = time.monotonic() + timeout
    read: dict[socket.socket, bytes] = {}
    selector = stack.enter_context(selectors.DefaultSelector())
    selector.register(server, selectors.EVENT_READ)
    while len(members) < member.num_processes and time.monotonic() < deadline:
        for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
            if key.fileobj is server:
                connection, _ = server.accept()
                stack.enter_context(connection)
                connection.setblocking(False)
                selector.register(connection, selectors.EVENT_READ)
                read[connection] = b""
                continue
            connection = key.fileobj
            text = b""
            with contextlib.suppress(OSError):
                text = connection.recv(2**16)
            read[connection] += text
            if text and b"\n" not in text and len(read[connection]) < LINE_BYTES:
                continue  # there is more to come
            selector.unregister(connection)
            found = _read_member(read.pop(connection))
            if found is None:  # somebody else's, such as a scan of ports
                continue
            connections.append(connection)
            if complaint is None:
                complaint = _complaint(found, members)
                if complaint:
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
            members[found.process] = found
    return members, connections, complaint


def _read_member(line: bytes) -> Member | None:
    try:
        return Member(**json.loads(line))
    except (ValueError, TypeError):
        return None


def _complaint(found: Member, members: Mapping[int, Member]) -> str | None:
    """Why ``found`` can not be one of these; None: it can."""
    first = members[0]
    if found.num_processes != first.num_processes:
        return (
            f"--num_processes is {found.num_processes} for {found} and {first.num_processes} for {first}; give all "
            "processes the same number"
        )
    if found.process in members:
        return f"two processes say that they are {members[found.process]} and {found}; give each its own --process_id"
    for name in sorted(found.facts.keys() | first.facts.keys()):
        theirs, mine = (facts.get(name, "missing") for facts in (found.facts, first.facts))
        if theirs != mine:
            return f"{name} is {theirs!r} for {found} and {mine!r} for {first}; give all processes the same"
    return None


def _numbered(missing: list[int]) -> str:
    shown = ", ".join(map(str, missing[:16])) + (f" and {len(missing) - 16} more" if len(missing) > 16 else "")
    return f"process{'es' if len(missing) > 1 else ''} {shown}"


# ---- the others


def _answer(host: str, port: int, member: Member, timeout: float) -> list[dict[str, Any]]:
    """Tells process 0 who one is, and waits for the verdict."""
    deadline = time.monotonic() + timeout
    answer = b""
    with _connect(host, port, deadline, timeout) as connection:
        with contextlib.suppress(OSError):  # process 0 is gone: there is no answer
            connection.sendall(json.dumps(dataclasses.asdict(member)).encode() + b"\n")
            while not answer.endswith(b"\n"):
                connection.settimeout(max(0.1, deadline + GRACE_SECONDS - time.monotonic()))
                part = connection.recv(2**16)
                if not part:
                    break
                answer += part
    try:
        verdict = json.loads(answer)
        refused = verdict.get("refused")
        if refused is None:
            return verdict["seats"]
    except (ValueError, KeyError, AttributeError):
        refused = (
            f"what listens at {host}:{port} gives no verdict; see the output of process 0, and that no other run has "
            "this --coordinator"
        )
    raise RollCallError(refused)


def _connect(host: str, port: int, deadline: float, timeout: float) -> socket.socket:
    while True:
        try:
            return socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic()))
        except OSError as error:
            if time.monotonic() + RETRY_SECONDS > deadline:
                raise RollCallError(
                    f"process 0 did not answer at {host}:{port} within {timeout:.0f} s ({error.strerror or error}); "
                    "see that it was started there and that the port is open (--join_timeout waits longer)"
                ) from error
        time.sleep(RETRY_SECONDS)
