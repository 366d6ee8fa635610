"""Intervals of proportions against published values, scipy, and their own promises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from mem0_jax.eval.statistics import Paired, difference_interval, wilson_interval

counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_wilson_equals_scipy_and_holds_the_rate(count, confidence):
    low, high = wilson_interval(count[0], count[1], confidence)
    expected = binomtest(count[0], count[1]).proportion_ci(confidence, method="wilson")
    np.testing.assert_allclose([low, high], [expected.low, expected.high], atol=1e-12)
    assert 0 <= low <= count[0] / count[1] <= high <= 1


def test_difference_equals_newcombes_table():
    """Newcombe 1998, table II, method 10: contrasts (a) 56/70 - 48/80 and (d) 5/56 - 0/29, and (g) 10/10 - 0/10."""
    np.testing.assert_allclose(difference_interval((56, 70), (48, 80)), (0.0524, 0.3339), atol=5e-5)
    np.testing.assert_allclose(difference_interval((5, 56), (0, 29)), (-0.0381, 0.1926), atol=5e-5)
    np.testing.assert_allclose(difference_interval((10, 10), (0, 10)), (0.6075, 1.0), atol=5e-5)


@given(counts, counts)
def test_difference_is_antisymmetric(first, second):
    low, high = difference_interval(first, second)
    assert -1 - 1e-12 <= low <= high <= 1 + 1e-12
    np.testing.assert_allclose(difference_interval(second, first), (-high, -low), atol=1e-12)


def test_impossible_counts_are_refused():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for bad in ((-1, 4), (5, 4)):
        with pytest.raises(ValueError, match="successes"):
            wilson_interval(*bad)
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 2, 1.0)
    with pytest.raises(ValueError, match="trials on both sides"):
        difference_interval((0, 0), (1, 2))


def test_paired_interval_equals_newcombes_table():
    """Newcombe 1998 (paired data), method 10, of the pairs 36, 12, 2, 0."""
    pairs = Paired(36, 12, 2, 0)
    assert pairs.difference == 0.2
    np.testing.assert_allclose(pairs.interval(), (0.0569, 0.3404), atol=5e-5)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_paired_outcomes_keep_their_promises(outcomes):
    first, second = zip(*outcomes)
    pairs, turned = Paired.of(first, second), Paired.of(second, first)
    low, high = pairs.interval()
    assert -1 - 1e-12 <= low <= pairs.difference <= high <= 1 + 1e-12
    np.testing.assert_allclose(turned.interval(), (-high, -low), atol=1e-12)
    if pairs.only_first + pairs.only_second:
        expected = binomtest(pairs.only_first, pairs.only_first + pairs.only_second).pvalue
        np.testing.assert_allclose(pairs.p_value(), expected, rtol=1e-9)
    else:
        assert pairs.p_value() == 1


def test_outcomes_that_are_no_pairs_are_refused():
    for first, second in (([], []), ([True], [True, False])):
        with pytest.raises(ValueError, match="as many outcomes"):
            Paired.of(first, second)
