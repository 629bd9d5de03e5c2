"""The judge: decodes outputs and compares them with what is expected. No program ever runs in it.

    python -S -s -P -B output_judge.py PACKAGES_JSON numpy|plain

Requests on standard input: a length of four bytes, then a pickled list of (rule, arguments, output as bytes, expected
output as bytes, atol), ``arguments`` a pickle of their own; replies on standard output: JSON lists of
[right, next atol, text] behind a length. The text says what was compared, "" where it was right. A plain judge has no
numpy, whose import takes longer than most judging, and answers null where it would need it.
"""

from __future__ import annotations

import json
import os
import pickle
import reprlib
import resource
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path += json.loads(sys.argv[1])
sys.path.append(ROOT)
from data_gen.isolated import evalplus_rules, feedback, messages, namespaces, outputs  # noqa: E402

MEMORY = 8 << 30

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = feedback.SHOWN
SHORT.maxlist = SHORT.maxtuple = SHORT.maxset = SHORT.maxdict = 20


def main() -> None:
    plain = sys.argv[2] == "plain"
    outputs.prepare(with_numpy=not plain)  # what is imported later must be readable by anybody
    namespaces.close_to_others()
    namespaces.drop_privileges(namespaces.NOBODY if os.geteuid() == 0 else None)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    if plain:
        sys.modules["numpy"] = None  # to import it is an ImportError
    replies = os.dup(1)
    os.dup2(2, 1)
    while (size := sys.stdin.buffer.read(4)) and len(size) == 4:
        items = pickle.loads(sys.stdin.buffer.read(int.from_bytes(size, "little")))
        messages.write_message(replies, [judge(*item, plain) for item in items])


def judge(rule: str, arguments: bytes, output: bytes, expected: bytes, atol: float, plain: bool):
    """One output; anything that goes wrong means that it is not right, as in evalplus."""
    text, right = "", False
    try:
        out = outputs.decode(output)
        if rule == "root":
            known, out = out
        else:
            known = pickle.loads(arguments)
        wanted = outputs.decode(expected) if expected else None
        right, atol = evalplus_rules.judge(rule, known, out, wanted, atol)
        if not right:
            text = f"got {SHORT.repr(out)}, expected {SHORT.repr(wanted)}"
    except BaseException as error:
        if plain and isinstance(error, ImportError):
            return None
        text = f"the comparison raised {type(error).__name__}: {str(error)[: feedback.SHOWN]}"
    return [right, atol, text]


if __name__ == "__main__":
    main()
