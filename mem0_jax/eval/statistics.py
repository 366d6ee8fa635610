"""Intervals for success rates, so that a handful of episodes is not read as more than it is."""

import math
from statistics import NormalDist


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a proportion.

    Keeps its coverage for few trials and near 0 and 1, where the textbook interval ``p +- z sqrt(p (1 - p) / n)``
    collapses to a point. Without trials it is (0, 1).

    Args:
      successes: 0 <= successes <= trials.
      trials: number of independent episodes.
      confidence: of the interval, between 0 and 1.

    Returns:
      (low, high), with 0 <= low <= successes / trials <= high <= 1.

    Raises:
      ValueError: counts or confidence out of range.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927).
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials, got {successes} of {trials}")
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, got {confidence}")
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, shrink = successes / trials, 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    # Rounding may leave the ends a hair inside the extremes, where the formula gives exactly 0, 1 or the rate.
    return max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))


def difference_interval(
    first: tuple[int, int], second: tuple[int, int], confidence: float = 0.95
) -> tuple[float, float]:
    """Newcombe's interval of the difference of two independent proportions, ``first - second``.

    Conservative when both were measured on the same seeds, as then part of the variation is shared.

    Args:
      first: (successes, trials).
      second: (successes, trials).
      confidence: of the interval, between 0 and 1.

    Returns:
      (low, high) within [-1, 1].

    Raises:
      ValueError: counts or confidence out of range, or no trials.

    Source: R. G. Newcombe, "Interval estimation for the difference between independent proportions", Statistics in
    Medicine 17 (1998), method 10.
    """
    if 0 in (first[1], second[1]):
        raise ValueError(f"expected trials on both sides, got {first} and {second}")
    (low1, high1), (low2, high2) = wilson_interval(*first, confidence), wilson_interval(*second, confidence)
    p1, p2 = first[0] / first[1], second[0] / second[1]
    return p1 - p2 - math.hypot(p1 - low1, high2 - p2), p1 - p2 + math.hypot(high1 - p1, p2 - low2)
