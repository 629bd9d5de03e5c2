"""Families of explicit loops: searching, accumulating, counting, walking two lists."""

from __future__ import annotations

import random
from collections.abc import Sequence

from data_gen.families.inputs import SAMPLERS
from data_gen.families.pieces import INT_CONDITIONS, INT_MAPS, WORD_CONDITIONS, WORD_MAPS, WORD_TO_INT
from data_gen.families.task import Task, capital, one_of


def _given(rng: random.Random, *params: str) -> str:
    return " and ".join(rng.choice(SAMPLERS[param][0]) for param in params)


def _code(param: str, *lines: str) -> str:
    return "\n".join((f"def solve({param}):", *(f"    {line}" for line in lines))) + "\n"


def _pick(rng: random.Random, forms: Sequence[str], number: int) -> str:
    """Form ``number`` modulo their count: different phrasing numbers use different sentences."""
    return forms[number % len(forms)]


def draw_search(rng: random.Random) -> Task:
    """The first (or last) element for which a condition holds: itself, its image or its index."""
    ints = rng.random() < 0.6
    param, x, thing = ("xs", "x", "number") if ints else ("words", "w", "word")
    condition = one_of(rng, INT_CONDITIONS if ints else WORD_CONDITIONS)
    last = rng.random() < 0.35
    index = not last and rng.random() < 0.3
    default = rng.choice(("0", "-1", "None")) if ints else rng.choice(("''", "None"))
    image = one_of(rng, INT_MAPS if ints else WORD_MAPS + WORD_TO_INT[:1]) if rng.random() < 0.7 else None
    value = image.code.format(x=x) if image else x
    test = condition.code.format(x=x)
    head = f"for {x} in {param}[::-1]:" if last else f"for {x} in {param}:"
    if index:
        default, value, head, image = "-1", "i", f"for i, {x} in enumerate({param}):", None
    which = "last" if last else "first"
    name = "/".join(
        ["search", param, condition.key, which, "index" if index else image.key if image else "itself", default]
    )
    shown = default.replace("''", "an empty string")

    def phrase(rng: random.Random, number: int) -> str:
        clause = rng.choice(condition.one)
        what = "its index" if index else rng.choice(image.values) if image else "it"
        given = _given(rng, param)
        forms = (
            f"Given {given}, find the {which} {thing} that {clause} and return {what}, or {shown} if there is none.",
            f"Return {shown} unless some {thing} in {param} {clause}; for the {which} such {thing} return {what}.",
            f"Search {given} for the {which} {thing} that {clause}. Return {what}, else {shown}.",
        )
        return _pick(rng, forms, number)

    code = _code(param, head, f"    if {test}:", f"        return {value}", f"return {default}")
    smaller = (_code(param, head, f"    return {value}", f"return {default}"),)
    return Task(name, "search", (param,), code, phrase, smaller)


def draw_until(rng: random.Random) -> Task:
    """Collects images of the elements up to (or from) the first for which a condition holds."""
    ints = rng.random() < 0.6
    param, x, thing = ("xs", "x", "number") if ints else ("words", "w", "word")
    conditions, maps = (INT_CONDITIONS, INT_MAPS) if ints else (WORD_CONDITIONS, WORD_MAPS)
    stop, image = one_of(rng, conditions), one_of(rng, maps)
    included = rng.random() < 0.4
    test, value = stop.code.format(x=x), image.code.format(x=x)
    guard = [f"    if {test}:", "        break"]
    append = [f"    ys.append({value})"]
    body = append + guard if included else guard + append
    returned = rng.choice(("ys", "ys[::-1]", "len(ys)", "sum(ys)" if ints else "'-'.join(ys)"))
    ending = {
        "ys": "return the list",
        "ys[::-1]": "return the list reversed",
        "len(ys)": "return how many were collected",
        "sum(ys)": "return the sum",
        "'-'.join(ys)": "join the list with '-' between",
    }[returned]
    name = "/".join(["until", param, stop.key, "with" if included else "without", image.key, returned])

    def phrase(rng: random.Random, number: int) -> str:
        clause, what = rng.choice(stop.one), rng.choice(image.values)
        given = _given(rng, param)
        side = "after" if included else "before"
        forms = (
            f"Walk through {given} and collect for each {thing} {what}. Stop {side} the first {thing} that {clause}, "
            f"and {ending}.",
            f"Given {given}, stop {side} the first {thing} that {clause}. For each {thing} met collect {what}, "
            f"and {ending}.",
        )
        return _pick(rng, forms, number)

    def code(lines: list[str], result: str) -> str:
        return _code(param, "ys = []", f"for {x} in {param}:", *lines, f"return {result}")

    smaller = [code(append, returned)]
    smaller.append(code([line.replace(value, x) for line in append] + guard, returned))
    if not included:
        smaller[1] = code([*guard, f"    ys.append({x})"], returned)
    return Task(name, "until", (param,), code(body, returned), phrase, tuple(smaller))


_UPDATES = (
    (("total += {v}", "add {w}"), 3),
    (("total -= {v}", "subtract {w}"), 2),
    (("total += 1", "add 1"), 1),
    (("total -= 1", "subtract 1"), 1),
    (("total += 2", "add 2"), 1),
    (("total = 0", "reset the total to 0"), 1),
    (("total *= 2", "double the total"), 1),
    (("total = max(total, {v})", "raise the total to at least {w}"), 1),
)


def _update(rng: random.Random) -> tuple[str, str, str]:
    """(key, code with x, words with {w}) of one change of the total."""
    (code, words), _ = rng.choices(_UPDATES, weights=[weight for _, weight in _UPDATES])[0]
    if "{v}" not in code:
        return code, code, words
    image = one_of(rng, INT_MAPS) if rng.random() < 0.6 else None
    value = image.code.format(x="x") if image else "x"
    noun = rng.choice(image.values) if image else "it"
    return code.format(v=image.key if image else "x"), code.format(v=value), words.format(w=noun)


def draw_totals(rng: random.Random) -> Task:
    """A running total that numbers change in one of two ways."""
    condition = one_of(rng, INT_CONDITIONS)
    start = rng.choice((0, 0, 0, 1, 10, 100))
    then_key, then_code, then_words = _update(rng)
    other = _update(rng) if rng.random() < 0.6 else None
    test = condition.code.format(x="x")
    lines = [f"total = {start}", "for x in xs:", f"    if {test}:", f"        {then_code}"]
    shorter = [[f"total = {start}", "for x in xs:", f"    {then_code}"]]
    if other:
        shorter.append(list(lines))
        shorter.append([f"total = {start}", "for x in xs:", f"    {other[1]}"])
        lines += ["    else:", f"        {other[1]}"]
    name = "/".join(["totals", str(start), condition.key, then_key, other[0] if other else "none"])

    def phrase(rng: random.Random, number: int) -> str:
        clause = rng.choice(condition.one)
        given = _given(rng, "xs")
        if number % 2:
            otherwise = f", otherwise {other[2]}" if other else ""
            return (
                f"Given {given}, keep a total that starts at {start}: if a number {clause}, {then_words}{otherwise}. "
                "Return the total."
            )
        otherwise = f", and for every other number {other[2]}" if other else ""
        return (
            f"Start a total at {start}. For every number in xs that {clause} {then_words}{otherwise}. Return the total."
        )

    codes = tuple(_code("xs", *part, "return total") for part in shorter)
    return Task(name, "totals", ("xs",), _code("xs", *lines, "return total"), phrase, codes)


def draw_counts(rng: random.Random) -> Task:
    """A dictionary of counts or sums by a key of the element."""
    ints = rng.random() < 0.5
    param, x, thing, things = ("xs", "x", "number", "numbers") if ints else ("words", "w", "word", "words")
    keys = INT_MAPS if ints else WORD_TO_INT + WORD_MAPS
    by = one_of(rng, keys)
    condition = one_of(rng, INT_CONDITIONS if ints else WORD_CONDITIONS) if rng.random() < 0.65 else None
    added = rng.choice((("1", "count"), ("x", "sum")) if ints else (("1", "count"), ("len(w)", "sum")))
    result, ending = rng.choice(
        (
            ("counts", "return the dictionary"),
            ("counts", "return the dictionary"),
            ("sorted(counts)", "return the sorted keys"),
            ("sorted(counts.values())", "return the sorted values"),
            ("[k for k in counts if counts[k] > 1]", "return the keys whose value is greater than 1"),
            ("[k for k in counts if counts[k] == 1]", "return the keys whose value is 1"),
        )
    )
    key = by.code.format(x=x)
    body = [f"k = {key}", f"counts[k] = counts.get(k, 0) + {added[0]}"]

    def build(guard: bool) -> str:
        inner = [f"    {line}" for line in body]
        if guard:
            inner = [f"    if {condition.code.format(x=x)}:"] + [f"    {line}" for line in inner]
        return _code(param, "counts = {}", f"for {x} in {param}:", *inner, f"return {result}")

    name = "/".join(["counts", param, condition.key if condition else "all", by.key, added[0], result])

    def phrase(rng: random.Random, number: int) -> str:
        kept = f" that {rng.choice(condition.many)}" if condition else ""
        value = rng.choice(by.values)
        given = _given(rng, param)
        if added[0] == "1":
            what = f"count the {things}{kept} by {value}"
            noun = f"how many {things}{kept} share each key, where the key of a {thing} is {value}"
        else:
            measure = "" if ints else "lengths of the "
            what = f"sum the {measure}{things}{kept} by {value}"
            noun = f"the sum of the {measure}{things}{kept} for each key, where the key of a {thing} is {value}"
        forms = (
            f"Given {given}, {what} in a dictionary, and {ending}.",
            f"Build a dictionary for {given} that holds {noun}, and {ending}.",
            f"{capital(what)} in {given} and {ending}.",
        )
        return _pick(rng, forms, number)

    smaller = (build(False),) if condition else ()
    return Task(name, "counts", (param,), build(condition is not None), phrase, smaller)


_PAIR_VALUES = (
    ("a + b", "the sum", "the sums"),
    ("a * b", "the product", "the products"),
    ("a - b", "the first minus the second", "the differences"),
    ("b - a", "the second minus the first", "the reversed differences"),
    ("max(a, b)", "the larger", "the larger values"),
    ("min(a, b)", "the smaller", "the smaller values"),
    ("abs(a - b)", "the distance", "the distances"),
    ("a", "the first", "the first values"),
    ("b", "the second", "the second values"),
)
_PAIR_TESTS = (
    ("a > b", "the first is greater"),
    ("a < b", "the second is greater"),
    ("a != b", "the two differ"),
    ("a == b", "the two are equal"),
    ("(a + b) % 2 == 0", "the sum is even"),
    ("a * b > 0", "the product is positive"),
)
_PAIR_ENDS = (
    ("{v}", "return the list", "the list of {}"),
    ("sum({v})", "return their sum", "the sum of {}"),
    ("max({v}, default=0)", "return the largest or 0 if there is none", "the largest of {}"),
    ("min({v}, default=0)", "return the smallest or 0 if there is none", "the smallest of {}"),
    ("len({v})", "return how many there are", "the number of {}"),
    ("sorted({v})", "sort them in ascending order", "the ascending order of {}"),
    ("{v}[::-1]", "return them reversed", "the reverse of {}"),
    ("len(set({v}))", "count the distinct ones", "the number of distinct values of {}"),
)


def draw_pairs(rng: random.Random) -> Task:
    """Two lists walked side by side."""
    value, one, many = rng.choice(_PAIR_VALUES)
    if rng.random() < 0.5:
        test, words = rng.choice(_PAIR_TESTS)
        tested = ""
    else:
        side = rng.choice(("a", "b"))
        condition = one_of(rng, INT_CONDITIONS)
        test = condition.code.format(x=side)
        tested = "the first" if side == "a" else "the second"
        words = f"{tested} {condition.one[0]}"
    end, ending, noun = rng.choice(_PAIR_ENDS)
    line = f"zs = [{value} for a, b in zip(xs, ys) if {test}]"
    name = "/".join(["pairs", value, test, end])

    def phrase(rng: random.Random, number: int) -> str:
        if number % 2:
            return f"Return {noun.format(many)} over the pairs of lists xs and ys in which {words}."
        forms = (
            f"Walk through the lists xs and ys in pairs. Where {words}, collect {one}. Finally {ending}.",
            f"Given two lists xs and ys, take {one} of each pair in which {words}, and {ending}.",
        )
        return rng.choice(forms)

    def build(first: str) -> str:
        return _code("xs, ys", first, f"return {end.format(v='zs')}")

    smaller = (build(f"zs = [{value} for a, b in zip(xs, ys)]"),)
    return Task(name, "pairs", ("xs", "ys"), build(line), phrase, smaller)
