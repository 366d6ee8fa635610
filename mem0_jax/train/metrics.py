"""What the log shows: means over a window of steps, and the subtask-end classifier's quality over a window of rows.

Source of the classifier's numbers: the Mem-0 reference, source/training/utils/classifier_metrics.py. Counts are summed
before anything is divided, because a batch holds too few subtask ends for its own precision to mean anything.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

COUNTS = ("cls_tp", "cls_fp", "cls_fn", "cls_correct", "cls_total", "cls_positive")


def classifier_metrics(counts: Mapping[str, float]) -> dict[str, float]:
    """Accuracy, precision, recall, F1 and rate of positive labels from summed counts; 0 where nothing was counted.

    Args:
        counts: `cls_tp`, `cls_fp`, `cls_fn` (true and false positives, false negatives), `cls_correct` of `cls_total`
            frames, `cls_positive` frames labelled as subtask end.
    """
    tp, fp, fn, correct, total, positive = (counts[name] for name in COUNTS)

    def ratio(part: float, whole: float) -> float:
        return part / whole if whole > 0 else 0.0

    return {
        "classifier_accuracy": ratio(correct, total),
        "classifier_precision": ratio(tp, tp + fp),
        "classifier_recall": ratio(tp, tp + fn),
        "classifier_f1": ratio(2 * tp, 2 * tp + fp + fn),
        "classifier_positive_rate": ratio(positive, total),
    }


class ClassifierWindow:
    """Sums the counts of the newest `size` log rows."""

    def __init__(self, size: int, rows: Iterable[Sequence[float]] = ()) -> None:
        """`rows` are those another window of the same run returned from `rows()`."""
        if size < 1:
            raise ValueError(f"classifier window: expected a size of at least 1 row, got {size}")
        self._rows: deque[list[float]] = deque((list(row) for row in rows), maxlen=size)

    def update(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Add one row's counts and return `classifier_metrics` over the window."""
        self._rows.append([float(counts[name]) for name in COUNTS])
        return classifier_metrics(dict(zip(COUNTS, map(sum, zip(*self._rows)))))

    def rows(self) -> list[list[float]]:
        """The rows it holds, oldest first, each in the order of `COUNTS`: JSON values for a checkpoint."""
        return list(self._rows)


def summarise(
    names: Sequence[str], values: Sequence[Sequence[float]]
) -> tuple[dict[str, float], dict[str, float] | None]:
    """Condense the metrics of a window of steps.

    Args:
        names: metric names, M of them.
        values: one sequence of M numbers for each step.
    Returns:
        Mean of every metric over the steps where it is finite (NaN where it never is), without the counts; and the
        summed counts, or None if the policy counts nothing. A step whose counts are not finite does not count.
    """
    columns = {name: [float(step[i]) for step in values] for i, name in enumerate(names)}
    means = {
        name: math.fsum(finite) / len(finite) if (finite := [v for v in column if math.isfinite(v)]) else math.nan
        for name, column in columns.items()
        if name not in COUNTS
    }
    present = [name for name in COUNTS if name in columns]
    if not present:
        return means, None
    if len(present) < len(COUNTS):
        missing = ", ".join(sorted(set(COUNTS) - set(present)))
        raise ValueError(f"the policy's metrics hold {', '.join(present)} but not {missing}: give all counts or none")
    steps = [row for row in zip(*(columns[name] for name in COUNTS)) if all(map(math.isfinite, row))]
    return means, {name: math.fsum(row[i] for row in steps) for i, name in enumerate(COUNTS)}
