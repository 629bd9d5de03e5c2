"""Which verifiers there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from data_gen.teachers import Teacher
from data_gen.verifiers import Verifier

VERIFIERS: dict[str, Callable[[Mapping[str, Teacher], int], Verifier]] = {}


def make_verifiers(names: Sequence[str], teachers: Mapping[str, Teacher], seed: int) -> list[Verifier]:
    """The verifiers in the order of ``names``.

    Raises:
      VerifierError: what one of them needs is not installed.
    """
    return [VERIFIERS[name](teachers, seed) for name in names]
