"""Intervals for success rates, so that a handful of episodes is not read as more than it is."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Paired:
    """Two ways played on the same seeds: how many trials both solved, only the first, only the second, neither."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> "Paired":
        """Counts outcomes in the same order. Raises ValueError: other lengths, or no trials."""
        if len(first) != len(second) or not len(first):
            raise ValueError(f"expected as many outcomes on both sides, got {len(first)} and {len(second)}")
        pairs = Counter((bool(a), bool(b)) for a, b in zip(first, second))
        return cls(*(pairs[kind] for kind in ((True, True), (True, False), (False, True), (False, False))))

    @property
    def trials(self) -> int:
        """How many there were."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """Success rate of the first less that of the second."""
        return (self.only_first - self.only_second) / self.trials

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Newcombe's interval of `difference`, within [-1, 1]: Wilson intervals joined by the pairs' correlation.

        Source: R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions based on
        paired data", Statistics in Medicine 17 (1998), method 10.
        """
        n, first, second = self.trials, self.both + self.only_first, self.both + self.only_second
        (low1, high1), (low2, high2) = wilson_interval(first, n, confidence), wilson_interval(second, n, confidence)
        down1, up1, down2, up2 = first / n - low1, high1 - first / n, second / n - low2, high2 - second / n
        scale = math.sqrt(first * (n - first) * second * (n - second))
        excess = self.both * self.neither - self.only_first * self.only_second
        # The continuity correction never turns a positive correlation into a negative one.
        phi = (max(excess - n / 2, 0) if excess > 0 else excess) / scale if scale else 0.0
        low = self.difference - math.sqrt(max(down1**2 - 2 * phi * down1 * up2 + up2**2, 0))
        return low, self.difference + math.sqrt(max(up1**2 - 2 * phi * up1 * down2 + down2**2, 0))

    def p_value(self) -> float:
        """McNemar's exact test that both are equally good, two-sided, over the trials in which they differ.

        Source: Q. McNemar, Psychometrika 12 (1947); the exact form is a sign test.
        """
        n = self.only_first + self.only_second
        tail = sum(math.comb(n, k) for k in range(min(self.only_first, self.only_second) + 1))
        return min(1.0, 2 * tail / 2**n)
