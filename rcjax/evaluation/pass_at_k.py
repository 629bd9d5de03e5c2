"""pass@k and its uncertainty."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples passes.

    1 - C(n - c, k) / C(n, k) for c of n samples passed, as a product so that it neither overflows nor
    cancels. Source: Chen et al. 2021 (arXiv 2107.03374), equation 1.

    Raises:
      ValueError: not 0 <= num_passed <= num_samples, or not 1 <= k <= num_samples.
    """
    if not 0 <= num_passed <= num_samples:
        raise ValueError(f"{num_passed} of {num_samples} samples passed: need 0 <= passed <= samples")
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} of {num_samples} samples: need 1 <= k <= samples; draw more samples or lower k")
    if num_samples - num_passed < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(num_samples - num_passed + 1, num_samples + 1))


def mean_pass_at_k(counts: Iterable[tuple[int, int]], k: int) -> float:
    """Mean of ``pass_at_k`` over problems.

    Args:
      counts: (samples, passed samples) of each problem.
      k: samples that one may try.

    Raises:
      ValueError: no problems, or a problem with fewer than k samples.
    """
    estimates = [pass_at_k(num_samples, num_passed, k) for num_samples, num_passed in counts]
    if not estimates:
        raise ValueError("pass@k of zero problems is not defined")
    return math.fsum(estimates) / len(estimates)


def wilson_interval(rate: float, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion; holds its level for small sets and for rates near 0 and 1.

    Source: E. B. Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Args:
      rate: observed proportion in [0, 1].
      total: number of independent trials, at least 1: problems, not samples of one problem.
      confidence: two-sided level in (0, 1).

    Returns:
      (low, high), 0 <= low <= rate <= high <= 1.

    Raises:
      ValueError: an argument out of its range.
    """
    if not 0.0 <= rate <= 1.0 or total < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(
            f"Wilson interval of rate {rate} over {total} trials at {confidence}: need a rate in [0, 1], "
            "at least one trial and a confidence in (0, 1)"
        )
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    scale = 1.0 + z * z / total
    middle = (rate + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total))
    # min and max: at rates of 0 and 1 one bound equals the rate, up to rounding
    return min(rate, max(0.0, middle - half)), max(rate, min(1.0, middle + half))
