"""What the predictions on the test images say: intervals, paired tests, confusion."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike


def interval(right: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for an accuracy of `right` out of `total` test images, as shares in [0, 1]."""
    from scipy.stats import binomtest

    found = binomtest(int(right), int(total)).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


class PairedTest(NamedTuple):
    """Two classifiers on the same n test images; `difference` is accuracy(a) − accuracy(b)."""

    n: int
    only_a: int
    only_b: int
    difference: float
    p_value: float


def paired_test(labels: ArrayLike, a: ArrayLike, b: ArrayLike) -> PairedTest:
    """McNemar's exact test: are two classifiers equally accurate, given their classes for the same images?

    Only images that exactly one of them gets right count; under equality each falls to either with probability
    one half.

    Raises:
        ValueError: arrays of different lengths.
    """
    from scipy.stats import binomtest

    labels, a, b = (np.asarray(x) for x in (labels, a, b))
    if not labels.shape == a.shape == b.shape or labels.ndim != 1:
        raise ValueError(f"labels and classes must be of one length, got {labels.shape}, {a.shape}, {b.shape}.")
    only_a = int(((a == labels) & (b != labels)).sum())
    only_b = int(((b == labels) & (a != labels)).sum())
    p_value = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return PairedTest(len(labels), only_a, only_b, (only_a - only_b) / len(labels), p_value)


def confusion(labels: ArrayLike, predicted: ArrayLike, num_classes: int) -> Any:
    """(K, K) counts; row: true class, column: predicted class."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(np.asarray(labels), np.asarray(predicted), labels=range(num_classes))
