"""What devices send each other, read from the text of a compiled program.

The text is the compiler's own (``compiled.as_text()``), after it has split arrays over devices, chosen collective
operations and put them into loops: a product of split factors, for one, becomes on a TPU a loop that passes parts
around. So every operation counts as often as the loops that it stands in run.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping

# Bytes that each device of a group of n sends, where x bytes are what the operation's result says (of `-start`
# operations without the part that is its operand).
SENT = {
    "all-gather": lambda x, n: x * (n - 1) / n,
    "all-reduce": lambda x, n: 2 * x * (n - 1) / n,  # a reduce-scatter, and a gathering of the sums
    "reduce-scatter": lambda x, n: x * (n - 1),
    "all-to-all": lambda x, n: x * (n - 1) / n,
    "ragged-all-to-all": lambda x, n: x * (n - 1) / n,
    "collective-permute": lambda x, n: x,
    "collective-broadcast": lambda x, n: x,
}
_NUMBER = re.compile(r"(?:s|u|f|bf|c)(\d+)|f(8)e\w+")  # a dtype, and its bits

# Share of the result in the shape of a `-start` operation.
RESULT = {
    "all-gather": lambda n: n / (n + 1),
    "all-reduce": lambda n: 1.0,  # which shows its result alone
    "reduce-scatter": lambda n: 1 / (n + 1),
    "all-to-all": lambda n: 1 / 2,
    "ragged-all-to-all": lambda n: 1 / 2,
    "collective-permute": lambda n: 1 / 2,
    "collective-broadcast": lambda n: 1 / 2,
}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation between devices.

    Attributes:
      kind: a key of ``SENT``.
      sent: bytes that each device sends, each time.
      times: how often it runs in one run of the program.
      members: one of the groups that talk to each other, as numbers in the mesh's order; for ``collective-permute`` one
        sender and its receiver.
    """

    kind: str
    sent: float
    times: int
    members: tuple[int, ...]

    @property
    def total(self) -> float:
        """Bytes that each device sends in one run of the program."""
        return self.sent * self.times


@dataclasses.dataclass(frozen=True)
class _Instruction:
    root: bool
    name: str
    shape: str
    opcode: str
    rest: str


def collectives(text: str, devices: int, unknown_trips: int = 1) -> list[Collective]:
    """All operations between devices that a program runs, in the order of its text.

    Args:
      text: of the compiled program.
      devices: it runs on.
      unknown_trips: how often loops run whose end is decided by data.
    """
    computations, entry = _parse(text)
    times = _times(computations, entry, unknown_trips)
    fused = {
        called
        for instructions in computations.values()
        for instruction in instructions
        if instruction.opcode == "fusion"
        for called in _called(instruction)
    }
    found, channels = [], set()
    for name, instructions in computations.items():
        for instruction in instructions if times[name] else ():
            operation = _collective(instruction, devices)
            if operation is None:
                continue
            # One that runs beside products stands in several fusions, its beginning, its middle and its end; what they
            # have in common is the channel.
            channel = re.search(r"\bchannel_id=(\d+)", instruction.rest)
            if name in fused and channel:
                if channel[1] in channels:
                    continue
                channels.add(channel[1])
            found.append(dataclasses.replace(operation, times=times[name]))
    return found


def by_kind(found: Iterable[Collective]) -> dict[str, tuple[int, float]]:
    """kind -> (how many operations run, bytes that each device sends in them)."""
    kinds: dict[str, tuple[int, float]] = {}
    for operation in found:
        count, total = kinds.get(operation.kind, (0, 0.0))
        kinds[operation.kind] = count + operation.times, total + operation.total
    return dict(sorted(kinds.items()))


def count_calls(text: str, target: str) -> int:
    """How many calls of a kernel stand in the program (each may run many times)."""
    return text.count(f'custom_call_target="{target}"')


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    entry, inside = "", None
    for line in text.splitlines():
        if opened := _COMPUTATION.match(line):
            inside = computations.setdefault(opened[2], [])
            entry = opened[2] if opened[1] else entry
        elif inside is not None and (found := _INSTRUCTION.match(line)):
            inside.append(_Instruction(bool(found[1]), *found.groups()[1:]))
    return computations, entry


def _times(computations: Mapping[str, list[_Instruction]], entry: str, unknown_trips: int) -> dict[str, int]:
    """How often each computation runs: callers stand behind what they call, so from the entry upwards."""
    times = dict.fromkeys(computations, 0)
    times[entry] = 1
    for name in _callers_first(computations, entry):
        for instruction in computations[name]:
            trips = 1
            if instruction.opcode == "while":
                trips = _trips(instruction, computations[name], computations, unknown_trips)
            for called in _called(instruction):
                if called in times:
                    times[called] += times[name] * trips
    return times


def _callers_first(computations: Mapping[str, list[_Instruction]], entry: str) -> list[str]:
    order: list[str] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name in seen or name not in computations:
            return
        seen.add(name)
        for instruction in computations[name]:
            for called in _called(instruction):
                visit(called)
        order.append(name)

    visit(entry)
    return order[::-1]


def _called(instruction: _Instruction) -> list[str]:
    called = _CALLED.findall(instruction.rest)
    for several in _BRANCHES.findall(instruction.rest):
        called += [name.strip().lstrip("%") for name in several.split(",")]
    if instruction.opcode == "while":
        called.append(_part(instruction, "body"))
    return called


def _trips(
    loop: _Instruction,
    around: list[_Instruction],
    computations: Mapping[str, list[_Instruction]],
    unknown: int,
) -> int:
    """Runs of a loop's body: what the compiler noted, or what follows from its counter's start, step and end."""
    if noted := _TRIPS.search(loop.rest):
        return int(noted[1])
    condition, body = (_named(computations[_part(loop, name)]) for name in ("condition", "body"))
    test = next(instruction for instruction in condition.values() if instruction.root)
    if test.opcode != "compare" or "direction=LT" not in test.rest:
        return unknown
    counter, end = (condition.get(name) for name in _operands(test)[:2])
    end = _constant(end)
    if end is None or counter is None or counter.opcode != "get-tuple-element":
        return unknown
    index = _index(counter)
    start, step = 0, _step(body, index)
    outside = _named(around)
    state = outside.get(_operands(loop)[0])
    if state is not None and state.opcode == "tuple":
        start = _constant(outside.get(_operands(state)[index])) or 0
    return unknown if step is None else max(0, -(-(end - start) // step))


def _step(body: Mapping[str, _Instruction], index: int) -> int | None:
    """What a loop adds to part ``index`` of its state each time; the compiler's unrolled loops add more than 1."""
    root = next(instruction for instruction in body.values() if instruction.root)
    if root.opcode != "tuple":
        return None
    value, step = body.get(_operands(root)[index]), 0
    while value is not None and value.opcode in ("add", "copy"):
        inputs = [body.get(name) for name in _operands(value)]
        step += sum(filter(None, map(_constant, inputs)))
        value = next((one for one in inputs if _constant(one) is None), None)
    counts = value is not None and value.opcode == "get-tuple-element" and _index(value) == index
    return step if counts and step > 0 else None


def _named(instructions: list[_Instruction]) -> dict[str, _Instruction]:
    return {instruction.name: instruction for instruction in instructions}


def _part(loop: _Instruction, name: str) -> str:
    return re.search(rf"\b{name}=%?([\w.\-]+)", loop.rest)[1]


def _operands(instruction: _Instruction) -> list[str]:
    """Names between the brackets; the text may put shapes before them."""
    depth, inside = 1, ""
    for letter in instruction.rest:
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0:
            break
        inside += letter
    inside = re.sub(r"/\*.*?\*/", "", inside)
    inside = re.sub(r"\[[^\]]*\]|\{[^{}]*\}", "", inside)  # of shapes
    return [operand.split()[-1].lstrip("%") for operand in inside.split(",") if operand.strip()]


def _constant(instruction: _Instruction | None) -> int | None:
    """The whole number that an instruction is; None for any other."""
    if instruction is None or instruction.opcode != "constant":
        return None
    number = re.match(r"-?\d+(?=\))", instruction.rest)
    return int(number[0]) if number else None


def _index(instruction: _Instruction) -> int:
    return int(re.search(r"\bindex=(\d+)", instruction.rest)[1])


def _collective(instruction: _Instruction, devices: int) -> Collective | None:
    started = instruction.opcode.endswith("-start")
    kind = instruction.opcode.removesuffix("-start")
    if kind not in SENT:
        return None
    members = _members(instruction, devices)
    size = len(members)
    if size < 2:
        return None
    amount = _bytes(instruction.shape)
    if started:  # what it shows is operand and result
        amount *= RESULT[kind](size)
    return Collective(kind, SENT[kind](amount, size), 0, members)


def _members(instruction: _Instruction, devices: int) -> tuple[int, ...]:
    """The first group, from any of the ways in which the compiler writes groups down."""
    rest = instruction.rest
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest):
        return tuple(dict.fromkeys(map(int, pairs.groups())))
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return tuple(map(int, listed[1].split(",")))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        sizes = list(map(int, iota[3].split(",")))
        order = list(map(int, iota[4].split(","))) if iota[4] else list(range(len(sizes)))
        return tuple(_transposed(sizes, order)[: int(iota[2])])
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, )?(?:device_ids=\([^)]*\))?\s*\{([^}]*)\}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes[1])}
        joined = re.findall(r"'([^']+)'", axes[2])
        names = list(sizes)
        order = [names.index(name) for name in names if name not in joined] + [names.index(name) for name in joined]
        return tuple(_transposed(list(sizes.values()), order)[: math.prod(sizes[name] for name in joined)])
    return tuple(range(devices))  # no groups: all


@functools.cache
def _cached_transposed(sizes: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, ...]:
    import numpy as np

    return tuple(np.arange(math.prod(sizes)).reshape(sizes).transpose(order).reshape(-1).tolist())


def _transposed(sizes: list[int], order: list[int]) -> tuple[int, ...]:
    return _cached_transposed(tuple(sizes), tuple(order))


def _bytes(shape: str) -> float:
    """Of all arrays of a shape, or of a tuple of shapes without the marks that asynchronous operations wait for."""
    return sum(
        _bits(dtype) / 8 * math.prod(map(int, filter(None, sizes.split(","))))
        for dtype, sizes in _SHAPE.findall(re.sub(r"u32\[\](\{:S\(\d\)\})?(?=[,)])", "", shape))
    )


def _bits(dtype: str) -> int:
    number = _NUMBER.fullmatch(dtype)
    if number is None:
        return 8 if dtype == "pred" else 0  # tokens have no size
    return int(number[1] or number[2])
