"""Continuous batching: a fixed number of rows, each taken by the next prompt as soon as it is free.

The device works in chunks of at most ``CHUNK`` steps, one compiled loop each; between them the host collects tokens,
retires finished rows and lets prompts in. A chunk ends early when rows are finished and prompts are waiting. The cache
has as many slots as the longest row needs, rounded up (``SLOTS``), so a handful of programs serves all lengths.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rcjax.decode.forward import KEYS, Cache, empty_caches, logits, run_piece, step
from rcjax.decode.sampling import Filters, Sampling, check_range, choose
from rcjax.decode.weights import Weights, lay_out
from rcjax.model import LlamaConfig
from rcjax.model.precision import full_precision
from rcjax.sharding import MESH_AXES, constrain, row_shards

CHUNK = 16  # steps between two looks of the host; a look costs about a tenth of a step
IDLE = 16  # while prompts wait, a chunk ends when one row of so many is finished
PIECE = 64  # tokens of a prompt that run together
SPAN = 128  # a piece looks at a power of two times so many slots
# The ring has a multiple of so many slots; above four times as many, one of a quarter to an eighth of itself. On an
# accelerator slots are cheap and a program for each number of them takes long to compile.
SLOTS = 64
ACCELERATOR_SLOTS = 512

StopFn = Callable[[int, list[int]], bool]


def generate(
    config: LlamaConfig,
    params: dict[str, Any],
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    batch_size: int = 64,
    dtype: Any = jnp.float32,
    cache_dtype: Any = jnp.float32,
    forbidden_ids: Sequence[int] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    sample_ids: Sequence[int] | None = None,
    stop_fn: StopFn | None = None,
    on_result: Callable[[int, list[int]], None] | None = None,
    on_advance: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Continues each prompt, token by token: by the most likely token, or by draws.

    Neither the tokens nor the draws depend on batch size, order, or what else is generated, but for the rounding of
    sums: at a tie of two tokens to within it, either may come.

    Args:
      params: the plain parameter dict, on whatever devices it lies. Parameters on a mesh are used there: rows are
        split over its batch axes, heads, MLP and vocabulary over ``tensor``.
      prompts: token ids, each prompt at least one. Prompts that begin alike share that part of the work.
      max_new_tokens: most tokens a prompt is continued by.
      stop_ids: tokens that end a continuation.
      batch_size: rows generated together; a finished row is taken by the next prompt.
      dtype: of the computation, float32 being float32 on any chip; logits are compared in float32 or wider.
      cache_dtype: of the kept keys and values.
      forbidden_ids: never generated; the config's padding id is among them unless it is a stop id.
      temperature: 0 takes the most likely token; above, tokens are drawn from softmax(logits / temperature).
      top_p: draws are among the fewest most likely tokens with at least this share of the probability, above 0.
      top_k: draws are among so many most likely tokens, which comes before ``top_p``; 0: among all.
      seed: of the draws, 0 to 2**32 - 1.
      sample_ids: a number for each prompt, 0 to 2**32 - 1: token t of sample s is drawn with a key that is a function
        of (seed, s, t) alone. Default: the index of the prompt.
      stop_fn: (index of the prompt, its new tokens so far) -> whether to stop. Asked every few tokens; when it says
        yes, it is asked for the shorter continuations too, and the result ends with the first token for which it did.
        So it must say yes to all longer continuations as well, as a search for a stop string does.
      on_result: called with the index and the tokens of a prompt as soon as they are there.
      on_advance: called with the number of prompts that were finished since the last call.

    Returns:
      The continuations in the order of the prompts, without prompt and stop token.

    Raises:
      ValueError: an empty prompt, an id outside of the vocabulary, a sampling parameter out of its range, or a length
        that the rope type does not allow.
    """
    check_range(temperature, top_p, top_k, seed)
    samples = _check_samples(prompts, sample_ids)
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {index} is empty; it needs one token at least, BOS for example")
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise ValueError(
                f"prompt {index} holds id {max(prompt) if min(prompt) >= 0 else min(prompt)}, but the model knows "
                f"ids 0 to {config.vocab_size - 1}; use the tokenizer that belongs to it"
            )
    results: list[list[int]] = [[] for _ in prompts]
    if not prompts or max_new_tokens < 1:
        return results
    config.check_length(max(map(len, prompts)) + max_new_tokens, "the longest prompt with max_new_tokens behind it")
    banned = (set(forbidden_ids) | ({config.pad_token_id} - {None})) - set(stop_ids)
    allowed = np.arange(config.table_size) < config.vocab_size  # the tables' padding is no token
    allowed[sorted(banned)] = False
    with _mesh_of(params) as groups, full_precision(dtype):
        rows = min(batch_size, 1 << (len(prompts) - 1).bit_length())
        rows = -(-rows // groups) * groups
        engine = _Engine(
            config,
            lay_out(config, params, jnp.dtype(dtype)),
            rows,
            groups,
            jnp.dtype(cache_dtype),
            _Rules(
                allowed,
                np.isin(np.arange(config.table_size), list(stop_ids)),
                np.int32(max_new_tokens),
                Filters(temperature > 0, 0 < top_k < config.vocab_size, top_p < 1),
                Sampling(np.float32(temperature), np.float32(top_k), np.float32(top_p), np.uint32(seed)),
            ),
            stop_fn,
        )
        # The longest first: what does not fit into memory shows at once, and the end, when rows stay empty, is cheap.
        order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), tuple(prompts[index]), index))
        waiting = deque((index, list(prompts[index]), samples[index]) for index in order)
        for finished in engine.run(waiting):
            for index, tokens in finished:
                results[index] = tokens
                if on_result is not None:
                    on_result(index, tokens)
            if on_advance is not None and finished:
                on_advance(len(finished))
    return results


def _check_samples(prompts: Sequence[Sequence[int]], sample_ids: Sequence[int] | None) -> list[int]:
    samples = list(range(len(prompts)) if sample_ids is None else sample_ids)
    if len(samples) != len(prompts):
        raise ValueError(f"sample_ids are {len(samples)}, but prompts {len(prompts)}; expected one for each")
    bad = [sample for sample in samples if not 0 <= sample < 2**32]
    if bad:
        raise ValueError(f"sample_ids hold {bad[0]}; expected 0 to {2**32 - 1}")
    return samples


@contextlib.contextmanager
def _mesh_of(params: dict[str, Any]):
    """The parameters' mesh, or the current one, for all that is compiled inside; gives its number of row shards."""
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(params)]
    meshes = [s.mesh for s in shardings if isinstance(s, jax.sharding.NamedSharding)] + [jax.sharding.get_mesh()]
    mesh = next((mesh for mesh in meshes if mesh.axis_names == MESH_AXES and mesh.size > 1), None)
    if mesh is None:
        yield 1
        return
    with jax.set_mesh(mesh):
        yield row_shards(mesh)


@dataclasses.dataclass(frozen=True)
class _Rules:
    """What holds for all rows: bool [V] twice, int32, and how tokens are chosen."""

    allowed: np.ndarray
    stops: np.ndarray
    max_new_tokens: np.int32
    filters: Filters
    sampling: Sampling


@dataclasses.dataclass
class _Row:
    """A prompt that is being continued."""

    index: int
    new: list[int] = dataclasses.field(default_factory=list)


class _Rows:
    """What the host knows of the rows, as arrays that programs take; numbers of free rows mean nothing."""

    def __init__(self, rows: int):
        self.token = np.zeros(rows, np.int32)  # the newest, which is not in the cache yet
        self.length = np.zeros(rows, np.int32)  # tokens in the cache
        self.count = np.zeros(rows, np.int32)  # new tokens
        self.sample = np.zeros(rows, np.uint32)
        self.active = np.zeros(rows, bool)


class _Engine:
    """Rows, their cache and what is in them.

    Args:
      rows: a multiple of ``groups``.
      groups: prompts that are run together, one for each shard of rows.
    """

    def __init__(self, config, weights: Weights, rows: int, groups: int, cache_dtype, rules: _Rules, stop_fn):
        self.config, self.weights, self.rules, self.stop_fn = config, weights, rules, stop_fn
        self.groups, self.cache_dtype = groups, cache_dtype
        self.rows = _Rows(rows)
        self.taken: list[_Row | None] = [None] * rows
        self.slots, self.slot = 0, 0
        self.caches: list[Cache] = []
        self.scratch: list[Cache] = []
        self.hidden: jax.Array | None = None
        self.in_scratch: list[list[int]] = []

    def run(self, waiting: deque[tuple[int, list[int], int]]):
        """Yields lists of (index, tokens) as prompts are finished."""
        longest = max(len(prompt) for _, prompt, _ in waiting)
        self.scratch = _empty(self.config, self.groups, _power(longest, SPAN), self.cache_dtype)
        self.hidden = jnp.zeros((self.config.hidden_size, self.groups), self.weights["embedding"].dtype)
        self.in_scratch = [[] for _ in range(self.groups)]
        while waiting or self.rows.active.any():
            while waiting and not self.rows.active.all():
                yield self._admit(waiting)
            if self.rows.active.any():
                yield self._advance(bool(waiting))

    def _admit(self, waiting: deque) -> list[tuple[int, list[int]]]:
        """Lets prompts into the free rows and chooses their first token."""
        entered = []
        free = deque(np.flatnonzero(~self.rows.active).tolist())
        self._make_room([len(prompt) for _, prompt, _ in list(waiting)[: len(free)]])
        while free and waiting:
            group = [waiting.popleft() for _ in range(min(self.groups, len(free), len(waiting)))]
            places = [free.popleft() for _ in group]
            real = len(group)
            # A group that is not full repeats its first, row and all.
            group += [group[0]] * (self.groups - len(group))
            places += [places[0]] * (self.groups - len(places))
            prompts = [prompt for _, prompt, _ in group]
            lengths = np.array([len(prompt) for prompt in prompts], np.int32)
            self._run_prompts(prompts)
            samples = np.array([sample for *_, sample in group], np.uint32)
            self.caches = _insert(self.caches, self.scratch, np.array(places, np.int32), lengths, np.int32(self.slot))
            first = _first(
                self.config, self.weights, self.hidden, self.rules.allowed, self.rules.filters, self.rules.sampling,
                samples,
            )  # fmt: skip
            entered.append((group[:real], places, first))
        finished = []
        for group, places, first in entered:
            for (index, prompt, sample), place, token in zip(group, places, np.asarray(first), strict=False):
                self.taken[place] = _Row(index)
                self.rows.token[place], self.rows.length[place] = token, len(prompt)
                self.rows.count[place], self.rows.sample[place], self.rows.active[place] = 1, sample, True
                finished += self._take(place, [int(token)])
        return finished

    def _run_prompts(self, prompts: list[list[int]]) -> None:
        """Prompts into the scratch cache, from where they differ from what it holds, and their last hidden states."""
        common = min(_common(old, new) for old, new in zip(self.in_scratch, prompts, strict=True))
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        if common == max(lengths) and self.in_scratch == prompts:
            return
        start = min(common, min(lengths) - 1) // PIECE * PIECE
        for first in range(start, max(lengths), PIECE):
            tokens = np.zeros((self.groups, PIECE), np.int32)
            for row, prompt in zip(tokens, prompts, strict=True):
                part = prompt[first : first + PIECE]
                row[: len(part)] = part
            self.hidden, self.scratch = _run_piece(
                self.config, self.weights, self.scratch, self.hidden, tokens, np.int32(first), lengths,
                min(_power(first + PIECE, SPAN), self.scratch[0][1].shape[2]),
            )  # fmt: skip
        self.in_scratch = prompts

    def _advance(self, waiting: bool) -> list[tuple[int, list[int]]]:
        """A chunk of steps."""
        rows, rules = self.rows, self.rules
        self._make_room([])
        before = rows.count.copy()
        self.caches, (slot, out, token, length, count) = _chunk(
            self.config, self.weights, self.caches, np.int32(self.slot), rows.token, rows.length, rows.count,
            rows.sample, rows.active, rules.allowed, rules.stops, rules.max_new_tokens, rules.filters, rules.sampling,
            np.int32(max(1, len(self.taken) // IDLE) if waiting else len(self.taken) + 1),
        )  # fmt: skip
        self.slot, out = int(slot), np.asarray(out)
        rows.token, rows.length, rows.count = (np.array(part) for part in (token, length, count))
        finished = []
        for place in np.flatnonzero(rows.active):
            finished += self._take(place, out[: rows.count[place] - before[place], place].tolist())
        return finished

    def _take(self, place: int, new: list[int]) -> list[tuple[int, list[int]]]:
        """Adds tokens to a row and retires it if it is finished."""
        row = self.taken[place]
        known = len(row.new)
        stopped = bool(new) and bool(self.rules.stops[new[-1]])
        row.new += new[:-1] if stopped else new
        if self.stop_fn is not None and len(row.new) > known and self.stop_fn(row.index, list(row.new)):
            stopped = True
            ends = range(known + 1, len(row.new))
            end = next((end for end in ends if self.stop_fn(row.index, row.new[:end])), len(row.new))
            del row.new[end:]
        if not stopped and len(row.new) < self.rules.max_new_tokens:
            return []
        self.taken[place] = None
        self.rows.active[place], self.rows.length[place] = False, 0
        return [(row.index, row.new)]

    def _make_room(self, coming: Sequence[int]) -> None:
        """As many slots as the rows need for a chunk, ``coming`` prompt lengths among them."""
        need = max([*self.rows.length[self.rows.active].tolist(), *coming]) + CHUNK
        # Kept as it is when a little less would do: it may grow again soon.
        if self.slots < need or _bucket(need + _slots() // 2) < self.slots:
            slots = _bucket(need)
            if not self.caches:
                self.caches = _empty(self.config, len(self.taken), slots, self.cache_dtype)
            elif slots != self.slots:
                self.caches = _resize(self.caches, np.int32(self.slot), slots)
                self.slot = self.slots % slots if slots > self.slots else 0
            self.slots = slots


def _bucket(need: int) -> int:
    """The cache's length for that many tokens."""
    unit = max(_slots(), 1 << max(0, (need - 1).bit_length() - 2))
    return -(-need // unit) * unit


def _slots() -> int:
    return SLOTS if jax.default_backend() == "cpu" else ACCELERATOR_SLOTS


def _power(need: int, unit: int) -> int:
    """The smallest power of two times ``unit`` that is not below ``need``."""
    return unit << max(0, (-(-need // unit) - 1).bit_length())


def _common(old: list[int], new: list[int]) -> int:
    """How many tokens two prompts begin alike with."""
    return next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _empty(config: LlamaConfig, rows: int, slots: int, dtype) -> list[Cache]:
    return empty_caches(config, rows, slots, dtype)


@functools.partial(jax.jit, static_argnums=(0, 7), donate_argnums=(2,))
def _run_piece(config, weights, scratch, hidden, tokens, start, lengths, span):
    """Runs a piece, and keeps the hidden states [D, P] of the last tokens of prompts that end in it."""
    x, scratch = run_piece(config, weights, scratch, tokens, start, span)  # [D, P, C]
    last = lengths - 1 - start
    found = jnp.take_along_axis(x, jnp.clip(last, 0, PIECE - 1)[None, :, None], axis=2)[..., 0]
    return jnp.where((last >= 0) & (last < PIECE), found, hidden), scratch


@functools.partial(jax.jit, static_argnums=(0, 4))
def _first(config, weights, hidden, allowed, filters, sampling, sample):
    """The first new token of prompts: hidden states [D, P] -> int32 [P]."""
    chosen = choose(logits(config, weights, hidden), allowed, filters, sampling, sample, jnp.zeros_like(sample))
    return constrain(chosen, None)


@functools.partial(jax.jit, donate_argnums=(0,))
def _insert(caches: list[Cache], scratch: list[Cache], places, lengths, slot) -> list[Cache]:
    """Prompts from the scratch cache into rows of the ring, the last token behind ``slot``."""

    def insert(cache: jax.Array, prompts: jax.Array, axis: int) -> jax.Array:
        size = cache.shape[axis]
        padding = [(0, max(0, size - prompts.shape[axis]) if i == axis else 0) for i in range(4)]
        prompts = jnp.pad(jax.lax.slice_in_dim(prompts, 0, min(size, prompts.shape[axis]), axis=axis), padding)
        for number in range(prompts.shape[0]):
            row = jnp.roll(prompts[number : number + 1], slot - lengths[number], axis=axis)
            cache = jax.lax.dynamic_update_slice_in_dim(cache, row, places[number], axis=0)
        return constrain(cache, *KEYS)

    return [
        (insert(keys, new_keys, 3), insert(values, new_values, 2))
        for (keys, values), (new_keys, new_values) in zip(caches, scratch, strict=True)
    ]


@functools.partial(jax.jit, static_argnums=(2,))
def _resize(caches: list[Cache], slot, slots: int) -> list[Cache]:
    """The ring with another number of slots: in order, the newest last, more slots behind or the oldest cut off."""

    def resize(cache: jax.Array, axis: int) -> jax.Array:
        size = cache.shape[axis]
        cache = jnp.roll(cache, -slot, axis=axis)
        if slots < size:
            return jax.lax.slice_in_dim(cache, size - slots, size, axis=axis)
        return jnp.pad(cache, [(0, slots - size if i == axis else 0) for i in range(4)])

    return [(constrain(resize(keys, 3), *KEYS), constrain(resize(values, 2), *KEYS)) for keys, values in caches]


@functools.partial(jax.jit, static_argnums=(0, 12), donate_argnums=(2,))
def _chunk(
    config,
    weights,
    caches,
    slot,
    token,
    length,
    count,
    sample,
    active,
    allowed,
    stops,
    most,
    filters,
    sampling,
    patience,
):
    """At most CHUNK steps, and none after that in which the number of finished rows has come to ``patience``.

    Returns:
      The caches, and the next slot, the tokens [CHUNK, R] of which a row's first ones count as many as its count grew
      by, and ``token``, ``length`` and ``count`` as they are now.
    """
    slots = caches[0][1].shape[2]

    def unfinished(state):
        number, _, _, _, _, now, *_ = state
        return (number < CHUNK) & jnp.any(now) & (jnp.sum(now != active) < patience)

    def advance(state):
        number, slot, token, length, count, now, out, caches = state
        hidden, caches = step(config, weights, caches, token, slot, length)
        chosen = choose(logits(config, weights, hidden), allowed, filters, sampling, sample, count)
        out = jax.lax.dynamic_update_slice_in_dim(out, chosen[None], number, axis=0)
        token, length, count = jnp.where(now, chosen, token), length + now, count + now
        now = now & ~stops[chosen] & (count < most)
        return number + 1, (slot + 1) % slots, token, length, count, now, out, caches

    out = jnp.zeros((CHUNK, token.shape[0]), jnp.int32)
    state = (jnp.int32(0), slot, token, length, count, active, out, caches)
    _, slot, token, length, count, _, out, caches = jax.lax.while_loop(unfinished, advance, state)
    return caches, (slot, constrain(out, None, None), *(constrain(part, None) for part in (token, length, count)))
