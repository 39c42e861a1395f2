"""What the predictions on the test images say: intervals, paired tests, confusion."""

import math
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    import pandas as pd


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


class Verdict(NamedTuple):
    """On a claim, from n paired differences: their mean, its 95 % interval (Student's t), the word, and the p-value."""

    word: str
    n: int
    mean: float
    low: float
    high: float
    p_value: float


def verdict(
    differences: ArrayLike, margin: float = 0.0, error: float = 0.0, least: float = 0.0, confidence: float = 0.95
) -> Verdict:
    """Does a claim "a exceeds b by more than −margin" hold, judged by the differences a − b of n seeds (ours)?

    It holds where the whole interval of the mean difference lies above −margin, does not hold where it lies
    below, and is undecided otherwise; fewer than three seeds decide nothing.  `error` is the standard error that the
    test images themselves leave, which all seeds share: it is added to that of the seeds, with
    Welch and Satterthwaite's degrees of freedom.  The interval is never narrower than that of either alone: Student's
    of the seeds, and the normal one of these very networks on other images, with standard error `least`.
    The p-value is the two-sided one of the same test: below 1 − confidence where the interval excludes −margin (NaN
    with fewer than three seeds).

    Raises:
        ValueError: no differences, or one that is not finite.
    """
    from scipy.stats import norm, t

    values = np.asarray(differences, dtype=float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"a verdict needs finite differences, at least one, got {values.tolist()}.")
    n, mean = len(values), float(values.mean())
    if n < 3:
        return Verdict("undecided", n, mean, float("-inf"), float("inf"), float("nan"))
    spread, away = float(values.std(ddof=1) / np.sqrt(n)), abs(mean + margin)
    both = math.hypot(spread, error)
    freedom = (n - 1) * (both / spread) ** 4 if spread else float("inf")
    laws = [(t(n - 1), spread), (t(freedom), both), (norm(), least)]  # the seeds alone; with the images; these alone
    reach = max(float(law.ppf(0.5 + confidence / 2)) * scale for law, scale in laws)
    p_value = max(float(2 * law.sf(away / scale)) if scale else float(not away) for law, scale in laws)
    low, high = mean - reach, mean + reach
    word = "holds" if low > -margin else "does not hold" if high < -margin else "undecided"
    return Verdict(word, n, mean, low, high, p_value)


def confusion(labels: ArrayLike, predicted: ArrayLike, num_classes: int) -> Any:
    """(K, K) counts; row: true class, column: predicted class."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(np.asarray(labels), np.asarray(predicted), labels=range(num_classes))


def accuracy_table(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Test accuracy in % as a table for readers: a row a decomposition, a column a strategy.

    `local` and `sub-networks` are means over the networks.  With several seeds: mean ± standard deviation over seeds
    (n).  `frame` is what `records.gather` gives.
    """
    point = ["dataset", "backbone", "width", "grid", "overlap", "epochs"]
    if "variant" in frame and frame["variant"].any():
        point.append("variant")
    if "settings" in frame and (frame.groupby([*point, "strategy"])["settings"].nunique() > 1).any():
        raise ValueError("records of different parameters (rate, batch_size, …) would share a row: choose among them.")
    if "computed" in frame:
        mixed = frame.groupby([*point, "strategy"])["computed"].unique()
        for row, ways in mixed[mixed.map(len) > 1].items():
            warnings.warn(f"the row {' '.join(map(str, row))} mixes {' with '.join(sorted(ways))}.", stacklevel=2)
    seeds = 100 * frame.groupby([*point, "strategy", "seed"], sort=False)["test_accuracy"].mean()
    cells = seeds.groupby([*point, "strategy"], sort=False).agg(_mean_and_deviation)
    rows = cells.index.droplevel("strategy").unique()  # in the order of the frame
    return cells.unstack("strategy").loc[rows, list(dict.fromkeys(frame["strategy"]))].rename_axis(columns=None)


def _mean_and_deviation(percent: "pd.Series") -> str:
    if len(percent) == 1:
        return f"{percent.iloc[0]:.1f}"
    return f"{percent.mean():.1f} ± {percent.std():.1f} ({len(percent)})"


def epochs_to_reach(accuracies: ArrayLike, target: float, first: int = 1) -> int | None:
    """The first epoch whose accuracy is at least `target`; None when none is.

    `first` is the epoch of the first accuracy: 0 where they begin with that before any training, which may be NaN.
    """
    reached = np.flatnonzero(np.asarray(accuracies) >= target)
    return int(reached[0]) + first if len(reached) else None
