"""Which verifiers there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from data_gen.teachers import Teacher
from data_gen.verifiers import Verifier
from data_gen.verifiers.crosshair import CrossHair
from data_gen.verifiers.properties import PropertyCheck
from data_gen.verifiers.typing import TypeCheck
from data_gen.verifiers.written import WrittenTests

VERIFIERS: dict[str, Callable[[Mapping[str, Teacher], int], Verifier]] = {
    "written": WrittenTests,
    "properties": PropertyCheck,
    "typing": TypeCheck,
    "crosshair": CrossHair,
}


def make_verifiers(names: Sequence[str], teachers: Mapping[str, Teacher], seed: int) -> list[Verifier]:
    """The verifiers in the order of ``names``.

    Raises:
      VerifierError: what one of them needs is not installed.
    """
    return [VERIFIERS[name](teachers, seed) for name in names]
