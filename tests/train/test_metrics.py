"""Classifier metrics over a window and means over steps."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mem0_jax.train.metrics import COUNTS, ClassifierWindow, classifier_metrics, summarise


def named(values) -> dict[str, float]:
    return {name: float(value) for name, value in zip(COUNTS, values)}


def counts_of(guess, label):
    values = (guess & label, guess & ~label, ~guess & label, guess == label, label | True, label)
    return named(v.sum() for v in values)


@given(
    st.lists(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=6), min_size=1, max_size=9), st.integers(1, 4)
)
def test_window_equals_metrics_of_the_frames_in_it(batches, size):
    window = ClassifierWindow(size)
    for end, frames in enumerate(batches, 1):
        pairs = np.array(frames, bool).reshape(-1, 2)
        result = window.update(counts_of(pairs[:, 0], pairs[:, 1]))
        recent = [pair for batch in batches[max(0, end - size) : end] for pair in batch]
        tp = sum(g and t for g, t in recent)
        guessed, positive = sum(g for g, _ in recent), sum(t for _, t in recent)
        precision = tp / guessed if guessed else 0
        recall = tp / positive if positive else 0
        f1 = 2 * precision * recall / (precision + recall) if tp else 0
        assert result["classifier_precision"] == pytest.approx(precision)
        assert result["classifier_recall"] == pytest.approx(recall)
        assert result["classifier_f1"] == pytest.approx(f1)
        assert result["classifier_accuracy"] == pytest.approx(
            sum(g == t for g, t in recent) / len(recent) if recent else 0
        )
        assert result["classifier_positive_rate"] == pytest.approx(positive / len(recent) if recent else 0)


def test_the_reference_batch():
    # One training batch of 20 frames of the reference and the numbers it printed for it.
    result = classifier_metrics(named((1.0, 5.0, 2.0, 13.0, 20.0, 3.0)))
    expected = (0.6499999761581421, 0.1666666716337204, 0.3333333432674408, 0.2222222238779068, 0.15000000596046448)
    np.testing.assert_allclose(list(result.values()), expected, rtol=1e-6)


def test_a_window_continues_from_its_rows():
    first, counts = ClassifierWindow(2), named((1.0, 2.0, 3.0, 4.0, 10.0, 4.0))
    first.update(counts)
    again = ClassifierWindow(2, first.rows())
    other = named((5.0, 0.0, 0.0, 9.0, 10.0, 5.0))
    assert again.update(other) == first.update(other) == classifier_metrics({k: counts[k] + other[k] for k in COUNTS})


def test_means_leave_out_what_is_not_finite_and_counts_are_summed():
    names = ["loss", *COUNTS, "grad_norm"]
    steps = [
        [1.0, 1, 2, 3, 4, 5, 6, math.nan],
        [math.nan, math.nan, 0, 0, 0, 0, 0, math.inf],
        [4.0, 1, 1, 1, 1, 1, 1, math.nan],
    ]
    means, counts = summarise(names, steps)
    assert means["loss"] == 2.5
    assert math.isnan(means["grad_norm"])
    assert set(means) == {"loss", "grad_norm"}
    assert counts == named((2, 3, 4, 5, 6, 7))


def test_a_policy_without_a_classifier_has_no_counts_and_half_of_them_is_an_error():
    assert summarise(["loss"], [[2.0]]) == ({"loss": 2.0}, None)
    with pytest.raises(ValueError, match="cls_tp but not cls_correct, cls_fn"):
        summarise(["cls_tp"], [[1.0]])
    with pytest.raises(ValueError, match="at least 1"):
        ClassifierWindow(0)
