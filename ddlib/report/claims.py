"""Do the papers' claims hold here?  Strategies compared on the same test images: a row a comparison and point.

Everything is drawn from records; nothing here trains.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..study.records import Record
from .figures import cut, named
from .tables import POINT, point, points, scored

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Comparison(NamedTuple):
    """Strategy `a` is more accurate than strategy `b`, or at most `margin` points behind.

    Where a is trained for E epochs, b is for `times` · E; with an `option` of `Experiment`, a has it and b has not.
    """

    claim: str
    a: str
    b: str
    times: int = 1
    margin: float = 0.0
    option: str = ""

    @property
    def training(self) -> str:
        """Epochs of a against those of b: "E + E : 2E"."""
        one, other = ("E + E" if strategy in TWICE else "E" for strategy in (self.a, self.b))
        return f"{one} : {other if self.times == 1 else f'{self.times}E'}"


TWICE = ("transfer", "channels")  # their parts are trained for E epochs, then the whole for E more
CLAIMS = (
    Comparison("C1", "cnn-dnn", "average"),
    Comparison("C1", "cnn-dnn", "vote"),
    Comparison("C2", "transfer", "cnn-dnn"),
    Comparison("C2", "transfer", "cnn-dnn", times=2),
    Comparison("C2", "transfer", "coherent", times=2),
    Comparison("C3", "coherent", "cnn-dnn"),
    Comparison("C5", "cnn-dnn", "global"),
    Comparison("C6", "channels", "global"),
    Comparison("C6", "channels", "global", times=2, margin=1.0),  # "almost no loss of accuracy": a point (ours)
    Comparison("C7", "transfer", "global"),
    Comparison("C7", "transfer", "global", times=2),
    Comparison("remedy", "cnn-dnn", "cnn-dnn", option="out_of_fold"),
    Comparison("remedy", "transfer", "transfer", option="out_of_fold"),
    Comparison("remedy", "cnn-dnn", "cnn-dnn", option="log_probabilities"),
    Comparison("remedy", "transfer", "transfer", option="log_probabilities"),
    Comparison("remedy", "coherent", "coherent", option="local_losses"),
    Comparison("remedy", "transfer", "transfer", option="local_losses"),
)
OPTIONS = {comparison.option for comparison in CLAIMS} - {""}
COMPARED = ["claim", "a", "b", "training", "margin", "option"]  # what names a comparison in a table
LOOKS = {"holds": ("#16407A", 5), "does not hold": ("#C2410C", 5), "undecided": ("#9A9A9A", 3)}  # colour, size
VERDICTS = [*LOOKS]


def judge(found: Sequence[Record]) -> "pd.DataFrame":
    """Every comparison of `CLAIMS` that the records allow, with its verdict.

    Columns: `COMPARED`, metric (AUC on data of two classes where both have it, else accuracy), `POINT`, train_size
    (training images, or "all"), n seeds, those of `difference`, adjusted p, and verdict.

    A row holds, or does not hold, where the difference lies above, or below, −margin with an adjusted p of at most
    0.05: p-values are corrected for the rows of their claim (Benjamini and Hochberg 1995).  All else is undecided:
    always with fewer than three seeds, or on a part of the training images.
    """
    import pandas as pd
    from scipy.stats import false_discovery_control

    by_parameters = {frozenset(record.parameters.items()): record for record in found}
    rows = []
    for asked in CLAIMS:
        for seeds in points(found).values():
            pairs = _pairs(asked, seeds, by_parameters)
            if pairs:
                rows.append(_row(asked, pairs))
    figures = ["n", "difference", "low", "high", "p", "adjusted p"]
    table = pd.DataFrame(rows, columns=[*COMPARED, "metric", *POINT, "train_size", *figures])
    for _, family in table[table["p"].notna()].groupby("claim"):
        table.loc[family.index, "adjusted p"] = false_discovery_control(family["p"])
    decided, above = table["adjusted p"] <= 0.05, table["difference"] > -table["margin"]
    return table.assign(verdict=np.select([decided & above, decided], VERDICTS[:2], VERDICTS[2]))


def summary(judged: "pd.DataFrame", times: "pd.DataFrame | None" = None) -> "pd.DataFrame":
    """How many rows of each comparison hold, do not hold, and are undecided.

    C4 counts the rows of `times`, the training-time table, in which local training, with a worker for each local CNN,
    takes less time than that of the global CNN; no test is made.
    """
    import pandas as pd

    rows = []
    for asked in CLAIMS:
        named = {name: getattr(asked, name) for name in COMPARED}
        own = judged[(judged[COMPARED] == list(named.values())).all(axis=1)]
        rows.append(named | {verdict: int((own["verdict"] == verdict).sum()) for verdict in VERDICTS})
    if times is not None:
        faster = int((times["parallel speed-up"] > 1).sum())
        named = dict(zip(COMPARED, ("C4", "local", "global", "E : E", 0.0, ""), strict=True))
        rows.append(named | dict(zip(VERDICTS, (faster, len(times) - faster, 0), strict=True)))
    return pd.DataFrame(rows).sort_values("claim", ignore_index=True, kind="stable")


def _pairs(
    asked: Comparison, seeds: Sequence[Record], by_parameters: dict[frozenset, Record]
) -> list[tuple[Record, Record]]:
    """For each seed of a point, the record with a and that with b, where there are both; mostly the same one twice."""
    pairs = []
    for record in seeds:
        parameters = dict(record.parameters)
        if OPTIONS & set(parameters) != {asked.option} - {""}:
            continue  # not the papers' way, or not the option in question
        parameters.pop(asked.option, None)
        parameters["epochs"] *= asked.times
        other = by_parameters.get(frozenset(parameters.items()))
        if other and asked.a in record.strategies and asked.b in other.strategies:
            pairs.append((record, other))
    return pairs


def _row(asked: Comparison, pairs: Sequence[tuple[Record, Record]]) -> dict[str, Any]:
    area = all(asked.a in scored(one) and asked.b in scored(other) for one, other in pairs)
    marks = _ranks if area else _right
    found = difference(np.array([marks(one, asked.a) - marks(other, asked.b) for one, other in pairs]), asked.margin)
    first = pairs[0][0]
    train_size = first.parameters.get("train_size") or "all"
    if train_size != "all":
        found["p"] = math.nan
    named = {name: getattr(asked, name) for name in COMPARED}
    told = {"metric": "AUC" if area else "accuracy", **point(first), "train_size": train_size, "n": len(pairs)}
    return {**named, **told, **found, "adjusted p": math.nan}


def difference(gaps: np.ndarray, margin: float = 0.0) -> dict[str, float]:
    """The mean difference between two strategies, in points, its 95 % interval, and the p-value of its being −margin.

    The interval's half width adds, in squares, that of the seeds (Student's t) and that of the test images, which all
    seeds share (normal).  NaN with fewer than three seeds.

    Args:
        gaps: a − b by seed and test image (seeds, n), in −1, 0, 1; for areas under the ROC curve by seed and pair of
            a positive and a negative image (seeds, positives, negatives).
        margin: in points.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm, t

    by_seed = 100 * gaps.reshape(len(gaps), -1).mean(1)
    mean = float(by_seed.mean())
    if len(gaps) < 3:
        return {"difference": mean, "low": math.nan, "high": math.nan, "p": math.nan}
    seeds, images = by_seed.std(ddof=1) / math.sqrt(len(gaps)), 100 * _image_error(gaps)

    def reach(p: float) -> float:
        return math.hypot(t.isf(p / 2, len(gaps) - 1) * seeds, norm.isf(p / 2) * images)

    away, least = abs(mean + margin), 1e-300
    # p is where the interval of confidence 1 − p ends at −margin
    exponent = brentq(lambda x: reach(10**x) - away, math.log10(least), 0) if reach(least) > away else -math.inf
    return {"difference": mean, "low": mean - reach(0.05), "high": mean + reach(0.05), "p": 10**exponent}


def _image_error(gaps: np.ndarray) -> float:
    """Standard error of the mean of `gaps` that the test images leave, of these networks.

    Shares get an image more for each side, or there would be no error where two strategies are right on the same
    images (Bonett and Price 2012); areas go by the placements of each image among those of the other class (DeLong,
    DeLong and Clarke-Pearson 1988).
    """
    mean = gaps.mean(0)
    if mean.ndim == 1:
        mean = np.append(mean, [1, -1])
    means = [np.moveaxis(mean, axis, 0).reshape(mean.shape[axis], -1).mean(1) for axis in range(mean.ndim)]
    return math.sqrt(sum(each.var(ddof=1) / len(each) for each in means))


def _right(record: Record, strategy: str) -> np.ndarray:
    """(n,): is a test image put into its class?"""
    return (record.predicted(strategy).squeeze() == record.arrays["labels"]).astype(float)


def _ranks(record: Record, strategy: str) -> np.ndarray:
    """(positives, negatives): is a positive test image scored higher than a negative one?  A half where as high."""
    labels, score = record.arrays["labels"], record.arrays[f"score/{strategy}"].squeeze()
    gap = score[labels == 1][:, None] - score[labels == 0]
    return (gap > 0) + 0.5 * (gap == 0)


def drawn(judged: "pd.DataFrame") -> "Figure":
    """Differences with their 95 % intervals: a panel a claim, a line a point, grouped by data set and backbone.

    The colour tells the verdict, the marker the comparison; undecided rows are small.  Rows of fewer than three seeds
    have no interval and are left to the table, and so are the remedies.
    """
    import matplotlib.pyplot as plt

    judged = judged[judged["low"].notna() & (judged["claim"] != "remedy")]
    groups = [*map(named, judged["dataset"], judged["backbone"])]
    judged = judged.assign(group=groups, place=judged.apply(_place, axis=1))
    lines: list[tuple[str, str]] = []  # group and point; a heading has no point
    for group, rows in judged.groupby("group", sort=False):
        lines += [(group, place) for place in ("", *dict.fromkeys(rows["place"]))]
    claims = judged.groupby("claim")
    size = (1.5 + 1.35 * len(claims), 1.4 + 0.15 * len(lines))
    figure, axes = plt.subplots(1, len(claims), figsize=size, sharey=True, squeeze=False)
    for ax, (claim, rows) in zip(axes[0], claims, strict=True):
        _panel(ax, rows.assign(height=[*map(lines.index, zip(rows["group"], rows["place"], strict=True))]))
        ax.set_title(claim)
    axes[0, 0].set_yticks(range(len(lines)), [place or group for group, place in lines], fontsize=7)
    for label, (_, place) in zip(axes[0, 0].get_yticklabels(), lines, strict=True):
        label.set_fontweight("normal" if place else "bold")
    axes[0, 0].set_ylim(len(lines) - 0.3, -0.7)
    keys = [plt.Line2D([], [], marker="o", linestyle="", color=c, markersize=m, label=v) for v, (c, m) in LOOKS.items()]
    figure.legend(handles=keys, loc="outside upper left", ncols=3, fontsize=8)
    figure.supxlabel("difference in points of accuracy, or of the area under the ROC curve (two classes)", fontsize=8)
    return figure


def _panel(ax: "Axes", rows: "pd.DataFrame") -> None:
    """The comparisons of a claim, at the `height` of each row."""
    for k, ((a, b, training), some) in enumerate(rows.groupby(["a", "b", "training"], sort=False)):
        marker = "o^s"[k % 3]
        for row in some.to_dict("records"):
            colour, size = LOOKS[row["verdict"]]
            y = row["height"] + 0.25 * (k - 1)
            ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1)
            ax.plot(row["difference"], y, marker, color=colour, markersize=size)
        label = f"{named(a)} − {named(b)}\n({training} epochs)"
        ax.plot([], [], marker, color="black", markersize=4, label=label)
    ax.axvline(0, color="black", linewidth=0.8)
    if rows[["low", "high"]].abs().max(axis=None) > 40:  # or one point hides the others
        ax.set_xscale("symlog", linthresh=10)
        ticks = [tick for tick in (-80, -10, 0, 10, 30) if ax.get_xlim()[0] <= tick <= ax.get_xlim()[1]]
        ax.set_xticks(ticks, ticks)
        ax.set_title("log beyond ±10", loc="right", fontsize=6)
    ax.tick_params(labelsize=7)
    ax.grid(True, axis="x", alpha=0.3)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.04), fontsize=6, handletextpad=0.1)


def _place(row: "pd.Series") -> str:
    """A point in words: "2×2, δ = 4, 12 epochs"."""
    options = dict(option.split("=", 1) for option in row["variant"].split())
    parts = f"P = {options['channel_parts']}" if "channel_parts" in options else cut(row["grid"], row["overlap"])
    images = "" if row["train_size"] == "all" else f", {row['train_size']:,} images"
    return f"{parts}, {row['epochs']} epochs{images}{'' if row['augment'] == 'yes' else ', not augmented'}"
