"""Mean differences between two strategies and what they leave open: variances of few seeds, images that rows share."""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SET = ("problem", "backbone", "width", "epochs", "augment")  # rows that agree in these share their global CNNs


@dataclass
class Row:
    """A comparison of strategies a and b at one point.

    Attributes:
        about: the columns of a table that name the row, `comparison`, `SET` and `source`, of its images, among them.
        by_seed: a − b in points, (seeds,).
        images: `influence` of the test images, the mean of the seeds, (images,).
        noise: of the variance that the images leave in the mean difference, how much is single images in single seeds:
            the variance of the seeds has it too, and it counts once.
        variance: of `by_seed` from one seed to another, moderated.
        freedom: its degrees of freedom.
    """

    about: dict[str, Any]
    by_seed: np.ndarray
    images: np.ndarray
    noise: float
    variance: float = math.nan
    freedom: float = math.nan

    @classmethod
    def of(cls, about: dict[str, Any], gaps: Sequence[np.ndarray], labels: np.ndarray | None) -> "Row":
        """From a − b on each test image, by seed: the arguments of `influence`."""
        added = np.array([influence(gap, labels) for gap in gaps])  # (seeds, images)
        noise = added.var(0, ddof=1).sum() / len(gaps) / added.shape[1] ** 2 if len(gaps) > 1 else 0.0
        return cls(about, np.array([100 * gap.mean() for gap in gaps]), added.mean(0), float(noise))


def grouped(rows: Iterable[Row], key: Callable[[Row], Hashable]) -> dict[Hashable, list[Row]]:
    """Rows by what `key` gives, in their order."""
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def of_set(row: Row) -> tuple[Any, ...]:
    """The set of global CNNs to which a row belongs."""
    return tuple(row.about[name] for name in SET)


def influence(gap: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """What each test image adds to the mean of `gap`, in points, less that mean; its mean square / n is a variance.

    Shares get an image more for each side, or there would be no error where two strategies are right on the same
    images (Bonett and Price 2012).  Areas under the ROC curve go by the placements of each image among those of the
    other class (DeLong, DeLong and Clarke-Pearson 1988).

    Args:
        gap: a − b, (n,); for areas (positives, negatives), with `labels` (n,) of 0 and 1.
    """
    if labels is None:
        return 100 * np.append(gap - gap.mean(), [1, -1])
    added = np.empty(len(labels))
    for label, others in ((1, 1), (0, 0)):
        own = labels == label
        added[own] = len(labels) / own.sum() * (gap.mean(others) - gap.mean())
    return 100 * added


def moderate(rows: Sequence[Row]) -> None:
    """Set `variance` and `freedom` of each row from those of its problem and comparison together (Smyth 2004).

    Three seeds tell a variance badly.  Variances of f degrees of freedom are taken to be s0² · F(f, d0), with an s0²
    for each problem and a d0 for each comparison.  What a row's own seeds say is averaged with s0², by degrees of
    freedom, and has d0 more of them, though no more than one row of each `SET` has together.  A row of one seed has
    s0².  Where no row of a problem has two seeds, those of the comparison's other problems stand in; NaN without any.
    """
    for same in grouped(rows, lambda row: row.about["comparison"]).values():
        by_problem = grouped((row for row in same if len(row.by_seed) > 1), lambda row: row.about["problem"])
        d0 = _strength([*by_problem.values()])
        for problem, group in grouped(same, lambda row: row.about["problem"]).items():
            known = by_problem.get(problem) or [row for others in by_problem.values() for row in others]
            if not known:
                continue
            usual = _usual(known, d0)
            most = sum(max(map(_freedom, rows)) for rows in grouped(known, of_set).values())
            for row in group:
                share = _freedom(row) / (d0 + _freedom(row))
                row.variance = usual + share * (_variance(row) - usual if share else 0.0)
                row.freedom = min(d0 + _freedom(row), most)


def _freedom(row: Row) -> float:
    return len(row.by_seed) - 1.0


def _variance(row: Row) -> float:
    """Between the seeds of a row; not below that of rounding, since shares of n images are multiples of 1 / n."""
    return max(float(row.by_seed.var(ddof=1)), (100 / len(row.images)) ** 2 / 12)


def _logarithms(rows: Sequence[Row]) -> np.ndarray:
    """Of the variances, less what is expected of their degrees of freedom."""
    from scipy.special import digamma

    half = np.array([_freedom(row) / 2 for row in rows])
    return np.log([_variance(row) for row in rows]) - digamma(half) + np.log(half)


def _strength(problems: Sequence[Sequence[Row]]) -> float:
    """d0, from how much the logarithms of the variances of a problem differ; infinite where by no more than chance."""
    from scipy.optimize import brentq
    from scipy.special import polygamma

    apart = np.concatenate([each - each.mean() for each in map(_logarithms, problems)] or [[]])
    if len(apart) == len(problems):
        return math.inf  # a row a problem: nothing is by_problem
    chance = np.mean([polygamma(1, _freedom(row) / 2) for rows in problems for row in rows])
    excess = (apart**2).sum() / (len(apart) - len(problems)) - chance
    return 2 * brentq(lambda half: polygamma(1, half) - excess, 1e-6, 1e7) if excess > 1e-6 else math.inf


def _usual(rows: Sequence[Row], d0: float) -> float:
    """s0²."""
    from scipy.special import digamma

    if math.isinf(d0):
        return float(np.average([_variance(row) for row in rows], weights=[*map(_freedom, rows)]))
    return float(np.exp(_logarithms(rows).mean() + digamma(d0 / 2) - np.log(d0 / 2)))


def effect(rows: Sequence[Row]) -> dict[str, float]:
    """The mean difference over rows in points, its 95 and 90 % interval, errors of seeds and images, p-value of 0.

    Rows of a data set have the same test images: what an image adds is averaged over rows first.  Rows of the same
    global CNNs (`SET`) are taken to vary together from seed to seed, which is the most that they can.  Degrees of
    freedom are Satterthwaite's, of the seeds of each problem and the images of each data set.
    """
    from scipy.stats import t

    parts = [_seeds(group, len(rows)) for group in grouped(rows, lambda row: row.about["problem"]).values()]
    seeds = sum(variance for variance, _ in parts)
    for group in grouped(rows, lambda row: (row.about["source"], len(row.images))).values():
        parts.append(_images(group, len(rows)))
    variance = sum(variance for variance, _ in parts)
    freedom = variance**2 / sum(doubt for _, doubt in parts)
    mean, error = float(np.mean([row.by_seed.mean() for row in rows])), math.sqrt(variance)
    reach, near = t.isf(0.025, freedom) * error, t.isf(0.05, freedom) * error
    found = {
        "difference": mean,
        "low": mean - reach,
        "high": mean + reach,
        "low 90": mean - near,
        "high 90": mean + near,
    }
    found |= {"seed error": math.sqrt(seeds), "image error": math.sqrt(variance - seeds)}
    return found | {"p": float(2 * t.sf(abs(mean) / error, freedom))}


def _seeds(group: Sequence[Row], count: int) -> tuple[float, float]:
    """What the seeds of a problem add to the variance of the mean of `count` rows, and its square over its freedom."""
    variance = root = 0.0
    for own in grouped(group, of_set).values():
        errors = np.array([math.sqrt(row.variance / len(row.by_seed)) / count for row in own])
        shares = errors * errors.sum()  # as if the rows of a set varied together
        variance += shares.sum()
        root += (shares / np.sqrt([row.freedom for row in own])).sum()  # all rest on one prior: roots are added
    return float(variance), float(root**2)


def _images(group: Sequence[Row], count: int) -> tuple[float, float]:
    """What the test images of a data set add, likewise."""
    added = sum(row.images for row in group) / count
    whole = float((added**2).sum() / len(added) / (len(added) - 1))
    return max(whole - sum(row.noise for row in group) / count**2, 0.0), whole**2 / (len(added) - 1)
