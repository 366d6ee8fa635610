"""Intervals of proportions against published values, scipy, and their own promises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from mem0_jax.eval.statistics import difference_interval, wilson_interval

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
