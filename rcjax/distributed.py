"""A run of several processes: how it starts, how its processes wait for each other, and how it ends.

All run the same program. Process 0 leads: it alone makes directories, writes files (checkpoints apart, of which each
process writes its part) and speaks. What processes tell each other outside of computations goes through the
key-value store of JAX's coordination service, not through devices: so waiting for hours is no collective operation
that times out, and nothing of it depends on clocks.

However a process fails, all end: one that raises says so in the store, where a thread of each other one waits for it;
one that is killed is missed by JAX (at once where a connection breaks, else after 100 s without a heartbeat).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import socket
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
from jax._src import distributed as _jax  # the store has no public door; orbax takes this one too

from rcjax.host_devices import one_device_per_core, usable_cores
from rcjax.roll_call import Member, RollCallError, call_roll, split_address

JOIN_SECONDS = 300
LEAVE_SECONDS = 5.0
FOREVER_MS = 30 * 24 * 3600 * 1000  # who is dead is missed otherwise
FAILURE = "rcjax/failure"
ELSEWHERE = "another process failed"
LOST_PEER = ("Gloo all-", "Gloo reduce", "closed by peer", "reset by peer", "UNAVAILABLE: ", "NCCL operation")

_rounds, _barriers = itertools.count(), itertools.count()


@dataclasses.dataclass(frozen=True)
class Place:
    """Which of how many processes this is, and where process 0 is to be found.

    Attributes:
      address: HOST:PORT of process 0's coordinator.
      local_devices: numbers of the devices of this machine that are this process's, where others share it; None: all.
    """

    address: str
    num_processes: int
    process: int
    local_devices: tuple[int, ...] | None = None


def find_place(address: str | None, num_processes: int | None, process: int | None) -> Place:
    """The place that flags name, or without any that TPU metadata, SLURM, Open MPI or Kubernetes give.

    Raises:
      RollCallError: some flags are missing or out of range, or nothing is found.
    """
    given = {"coordinator": address, "num_processes": num_processes, "process_id": process}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return _detect()
    if missing:
        raise RollCallError(
            f"--{missing[0]} is missing; give --coordinator=HOST:PORT --num_processes=N --process_id=I, or "
            "--distributed alone to have all three found"
        )
    split_address(address)
    if not 0 <= process < num_processes:
        raise RollCallError(
            f"--process_id={process} does not go with --num_processes={num_processes}; processes are numbered from 0 "
            "to one less than their number"
        )
    return Place(address, num_processes, process)


def _detect() -> Place:
    from jax._src.clusters import ClusterEnv

    try:
        address, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, JOIN_SECONDS
        )
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise RollCallError(
            f"--distributed can not read this cluster's description ({why}); give --coordinator=HOST:PORT "
            "--num_processes=N --process_id=I instead"
        ) from error
    if address is None or count is None or index is None:
        raise RollCallError(
            "--distributed finds no TPU pod, SLURM step, Open MPI job or Kubernetes job around this process; give "
            "--coordinator=HOST:PORT --num_processes=N --process_id=I instead"
        )
    return Place(address, int(count), int(index), None if devices is None else tuple(devices))


# ---- start and end


@contextlib.contextmanager
def one_run(place: Place | None, facts: Mapping[str, Any], timeout: float = JOIN_SECONDS) -> Iterator[None]:
    """A block that all processes of a run are in. Does nothing without a place.

    An error that leaves the block ends all processes; its sentence is printed once. It does not return then.

    Args:
      facts: what must be the same for all processes, by its name, as JSON values.
      timeout: seconds to wait for all to join.

    Raises:
      RollCallError: not all came, or they do not agree.
    """
    if place is None:
        yield
        return
    join(place, facts, timeout)
    threading.Thread(target=_watch, daemon=True, name="failures of others").start()
    try:
        yield
    except SystemExit:  # the same for all, such as an end that the scheduler asked for
        _leave()
        raise
    except BaseException as error:
        _fail(error)
    _leave()


def join(place: Place, facts: Mapping[str, Any], timeout: float = JOIN_SECONDS) -> None:
    """Calls the roll and starts ``jax.distributed``. To be called before the first array is made.

    Raises:
      RollCallError: see ``call_roll``.
    """
    member = Member(place.process, place.num_processes, socket.gethostname(), usable_cores(), facts)
    seats = call_roll(place.address, member, timeout)
    # The smallest share of all, for each process must have as many devices as the others.
    hosts = [seat.host for seat in seats]
    one_device_per_core(max(1, min(seat.cores // hosts.count(seat.host) for seat in seats)))
    _speak_for_all(place.process == 0)
    alone = hosts.count(member.host) == 1
    jax.distributed.initialize(
        place.address,
        place.num_processes,
        place.process,
        local_device_ids=[] if alone or place.local_devices is None else list(place.local_devices),
        cluster_detection_method="deactivate",
        initialization_timeout=max(1, int(timeout)),
    )
    counts = exchange(jax.local_device_count())
    if len(set(counts)) > 1:
        other = next(index for index, count in enumerate(counts) if count != counts[0])
        raise RollCallError(
            f"process {other} ({hosts[other]}) has {counts[other]} devices and process 0 ({hosts[0]}) {counts[0]}; "
            "give each process as many (on CPU with JAX_NUM_CPU_DEVICES)"
        )


def _speak_for_all(leader: bool) -> None:
    """Standard output becomes process 0's alone; what libraries print there from C++ goes to standard error."""
    sys.stdout.flush()
    if leader:
        sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
        os.dup2(2, 1)
    else:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)


def _leave() -> None:
    exchange("end")  # JAX waits for some minutes alone
    jax.distributed.shutdown()


def everywhere(error: Exception) -> Exception:
    """Marks an error that every process raises alike: process 0 alone prints it."""
    error.rcjax_everywhere = True
    return error


def _fail(error: BaseException) -> NoReturn:
    """Prints what happened, if that is this process's to do, and ends it; the others end likewise."""
    user = isinstance(error, ValueError | OSError) and not _lost_peer(error)
    code = 2 if user else 130 if isinstance(error, KeyboardInterrupt) else 1
    if user and not leads():
        time.sleep(0.5)  # what fails on all alike is for process 0 to say
    alike = getattr(error, "rcjax_everywhere", False)
    if (alike and leads()) or (not alike and _claim(code)):
        who = "" if leads() else f"process {_jax.global_state.process_id}: "
        if _lost_peer(error):
            print(
                f"{who}another process ended without a word or can not be reached ({str(error).strip()[:200]}); see "
                "its output, and give the same command to all again to go on from the last checkpoint",
                file=sys.stderr,
            )
        elif user and not os.environ.get("RCJAX_TRACEBACK"):
            print(f"{who}{type(error).__name__}: {error}\n(RCJAX_TRACEBACK=1 shows where)", file=sys.stderr)
        elif code != 130:
            print(f"{who}{type(error).__name__}", file=sys.stderr)
            traceback.print_exception(error)
    _end(code)


def _lost_peer(error: BaseException) -> bool:
    """Whether a computation ended because another process of it is gone."""
    return isinstance(error, ValueError | jax.errors.JaxRuntimeError) and any(sign in str(error) for sign in LOST_PEER)


def _claim(code: int) -> bool:
    """Tells the others that this process fails; False if another one did before."""
    try:
        _jax.global_state.client.key_value_set(FAILURE, json.dumps([_jax.global_state.process_id, code]))
    except jax.errors.JaxRuntimeError as error:
        return "ALREADY_EXISTS" not in str(error)
    return True


def code_facts(root: Path) -> dict[str, str]:
    """A checksum of each Python file below ``root``'s packages that decides numbers, for ``one_run``'s facts."""
    files = sorted(file for package in ("rcjax", "data_gen") for file in (root / package).rglob("*.py"))
    return {f"the code of {file.relative_to(root)}": f"{zlib.crc32(file.read_bytes()):08x}" for file in files}


def _watch() -> None:
    """Waits for the failure of another process, and ends this one if it does not end by itself."""
    try:
        process, code = json.loads(_jax.global_state.client.blocking_key_value_get(FAILURE, FOREVER_MS))
    except Exception:  # the run is over, or process 0 is gone, which JAX answers itself
        return
    if process == _jax.global_state.process_id:
        return
    print(f"stopped, for process {process} failed; see its output", file=sys.stderr)
    _end(code)


def _end(code: int) -> NoReturn:
    """Ends this process, whatever its threads wait for; process 0, which keeps the store, after the others."""
    state = _jax.global_state
    with contextlib.suppress(Exception):
        if leads():
            deadline = time.monotonic() + LEAVE_SECONDS
            while time.monotonic() < deadline and len(state.client.key_value_dir_get("rcjax/gone/")) < (
                state.num_processes - 1
            ):
                time.sleep(0.02)
        else:
            state.client.key_value_set(f"rcjax/gone/{state.process_id}", "")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


# ---- what processes tell each other


def leads() -> bool:
    """Whether this is process 0, which alone touches files."""
    return _jax.global_state.process_id == 0


def exchange(value: Any) -> list[Any]:
    """A JSON value of each process, on every process, by number. All call it, in the same order; it waits for all."""
    return _meet("rcjax", next(_rounds), value, FOREVER_MS)


def _meet(series: str, number: int, value: Any, timeout_ms: int) -> list[Any]:
    """``exchange`` number ``number`` of a series of them that are one behind the other."""
    state = _jax.global_state
    if state.client is None:
        return [value]
    if not leads():
        state.client.key_value_set(f"{series}/{number}/{state.process_id}", json.dumps(value))
        return json.loads(state.client.blocking_key_value_get(f"{series}/{number}/all", timeout_ms))
    values = [value]
    for process in range(1, state.num_processes):
        values.append(json.loads(state.client.blocking_key_value_get(f"{series}/{number}/{process}", timeout_ms)))
    state.client.key_value_set(f"{series}/{number}/all", json.dumps(values))
    if number:
        state.client.key_value_delete(f"{series}/{number - 1}")  # who has come to this round has read the last one
    return values


def tell(value: Any) -> Any:
    """A JSON value of process 0, on every process."""
    return exchange(value if leads() else None)[0]


class OutOfStepError(OSError):
    """Another process did not come to where this one waits for it, because something failed there."""


class Barrier:
    """Where the background threads of all processes wait for each other, time after time; made by all of them.

    A process in which something fails skips a meeting, and comes to the next one. All learn of it there, and none waits
    here any more: with barriers that do not know which meeting each has come to, all would wait for the time-out.
    """

    def __init__(self):
        self._series, self._meetings, self._broken = f"rcjax/barrier/{next(_barriers)}", itertools.count(), False

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Waits at the meeting ``key``.

        Raises:
          OutOfStepError: another process is at another meeting, or one was missed before.
          JaxRuntimeError: not all have come in time.
        """
        if self._broken:
            raise OutOfStepError(ELSEWHERE)
        self._broken = True  # unless all come
        keys = _meet(self._series, next(self._meetings), key, timeout_ms)
        if len(set(keys)) > 1:
            raise OutOfStepError(ELSEWHERE)
        self._broken = False


@contextlib.contextmanager
def together(kind: type[Exception]) -> Iterator[None]:
    """A block in which process 0 has something to do and the others little; all leave it at the same time.

    An error in it, of whichever process, ends all: they would wait for ever in their next collective operation. For
    the same reason there must be none in the block.

    Args:
      kind: what the other processes raise, with the message of the first that failed.
    """
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    texts = exchange(None if error is None else str(error) or type(error).__name__)
    failed = [process for process, text in enumerate(texts) if text is not None]
    if not failed:
        return
    who = f"process {failed[0]}: " if failed[0] else ""
    if error is None or texts[failed[0]] != str(error):
        raise everywhere(kind(who + texts[failed[0]]))
    raise everywhere(error)


def check_same(value: Any, complaint: Callable[[int], str]) -> None:
    """Refuses a run in which not all processes have the same JSON value.

    Args:
      complaint: the number of the first process that has another than process 0 -> the sentence.

    Raises:
      RollCallError: it is so, on every process.
    """
    values = exchange(value)
    for process, other in enumerate(values):
        if other != values[0]:
            raise everywhere(RollCallError(complaint(process)))
