"""Near duplicates within a set: MinHash finds candidates (datasketch), the exact Jaccard index decides."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

SHINGLE = 5  # words
PERMUTATIONS = 128


def words(text: str) -> list[str]:
    """Words, numbers and single signs in lower case: what shingles are made of."""
    return re.findall(r"[a-z]+|[0-9]+|[^\sa-z0-9]", text.lower())


def shingles(text: str, size: int = SHINGLE) -> frozenset[str]:
    """The runs of ``size`` words in a text; a shorter one is one run."""
    found = words(text)
    return frozenset(" ".join(found[at : at + size]) for at in range(max(1, len(found) - size + 1)))


def near_duplicates(texts: Sequence[str], threshold: float) -> dict[int, tuple[int, float]]:
    """The texts that are too like an earlier one that is kept.

    Args:
      texts: in the order of preference.
      threshold: Jaccard index of the shingles from which a text counts as a duplicate.

    Returns:
      {its place: (place of the kept text, their Jaccard index)}.
    """
    from datasketch import MinHash, MinHashLSH  # late: scipy takes a moment

    # Tuned towards too many candidates: one too many costs a comparison, one too few is a duplicate that stays.
    index = MinHashLSH(threshold=max(0.1, 0.75 * threshold), num_perm=PERMUTATIONS, weights=(0.1, 0.9))
    sets = [shingles(text) for text in texts]
    hashes = MinHash.generator(([piece.encode() for piece in pieces] for pieces in sets), num_perm=PERMUTATIONS, seed=1)
    found: dict[int, tuple[int, float]] = {}
    for place, (pieces, signature) in enumerate(zip(sets, hashes, strict=True)):
        likenesses = [(_jaccard(pieces, sets[other]), -other) for other in index.query(signature)]
        best, other = max(likenesses, default=(0.0, 0))
        if best >= threshold:
            found[place] = (-other, round(float(np.float64(best)), 4))
        else:
            index.insert(place, signature, check_duplication=False)
    return found


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)
