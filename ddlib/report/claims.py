"""Do the papers' claims hold here?  Strategies compared on the same test images, over seeds, with verdicts.

Everything is drawn from records; nothing here trains.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from ..study import records
from ..study.records import Record
from .evaluation import paired_test, verdict
from .tables import POINT, point, points, scored

if TYPE_CHECKING:
    import pandas as pd

# claim, what it says in words, and the comparisons (a, b) of strategies on which "a is more accurate than b" is judged
CLAIMS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("C1", "CNN-DNN beats average and vote", (("cnn-dnn", "average"), ("cnn-dnn", "vote"))),
    ("C2", "transfer (E + E epochs) beats the CNN-DNN (E epochs)", (("transfer", "cnn-dnn"),)),
    ("C3", "coherent from scratch beats the CNN-DNN (not claimed)", (("coherent", "cnn-dnn"),)),
    ("C5", "CNN-DNN beats the global CNN", (("cnn-dnn", "global"),)),
    ("C5", "transfer (E + E epochs) beats the global CNN (E epochs; ours)", (("transfer", "global"),)),
    (
        "C6",
        "composed sub-networks (E + E epochs) beat random weights (E epochs) (not claimed)",
        (("channels", "global"),),
    ),
)
# what is trained twice, for E + E epochs, against 2E epochs of another: claim, in words, a, b, and the loss allowed
BUDGET: tuple[tuple[str, str, str, str, float], ...] = (
    ("C2", "transfer (E + E epochs) beats the CNN-DNN (2E epochs)", "transfer", "cnn-dnn", 0.0),
    ("C2", "transfer (E + E epochs) beats the coherent model (2E epochs)", "transfer", "coherent", 0.0),
    ("C5", "transfer (E + E epochs) beats the global CNN (2E epochs)", "transfer", "global", 0.0),
    (  # "almost no loss of accuracy": a point (ours)
        *("C6", "composed sub-networks (E + E epochs) are at most 1 point behind random weights (2E epochs)"),
        *("channels", "global", 1.0),
    ),
)
# option of `Experiment` → the strategies that it is to improve
REMEDIES = {"out_of_fold": ("cnn-dnn", "transfer"), "local_losses": ("coherent", "transfer")}
DEPENDS = "the lead of coherent over the CNN-DNN depends on the backbone"
JUDGED = (
    *("claim", "what", "metric", *POINT, "a", "b", "epochs of b", "n", "difference", "low", "high", "p", "verdict"),
    *("McNemar", "subset"),
)
Pairs = Sequence[tuple[Record, Record]]


def judge(found: Sequence[Record]) -> "pd.DataFrame":
    """Every comparison that the records allow, with a verdict that allows for their number.

    Columns: claim, what (the comparison in words), metric ("accuracy" or "AUC"), `POINT`, a, b, epochs of b, n seeds,
    difference a − b in points and its 95 % interval (low, high), p and verdict (`evaluation.verdict`), McNemar, the
    largest p of that test over the seeds (1 where they differ in sign), subset (of the training images; that decides
    nothing), and adjusted p.

    The family of a row are the rows with the same claim, comparison in words and metric, on whole training sets and
    with three seeds: of those that hold or do not hold, at most 5 % are expected to be false, where the rows are
    independent or positively dependent (Benjamini and Hochberg 1995).  A row whose adjusted p is larger becomes
    undecided.  Intervals stay those of each row by itself.
    """
    import pandas as pd

    rows = [*_within(found), *_equal_budget(found), *_between_backbones(found), *_remedies(found)]
    table = pd.DataFrame(rows, columns=[*JUDGED]).astype({"width": "Int64", "epochs": "Int64", "epochs of b": "Int64"})
    return _adjusted(table)


def summary(judged: "pd.DataFrame", times: "pd.DataFrame | None" = None) -> "pd.DataFrame":
    """Comparison by comparison: how many rows hold, do not hold and are undecided, in how many a is ahead, and a word.

    The rows of `decisive` count; C1's against the average and against the vote apart, since it claims both.  A
    comparison holds where some row does and none says the contrary, and does not hold where it is the other way round;
    the word is said where it would be with Bonferroni's p, too, that is with at most 5 % for saying it of a comparison
    none of whose rows is true, else the comparison is undecided.  C5 says *can*: rows that say the contrary are no
    hindrance, and it does not hold where every row says so.  C3's dependence on the backbone cannot be refuted, only
    not be seen.  C4 counts the rows of `times`, the training-time table, with a speed-up above 1.
    """
    import pandas as pd

    enough = decisive(judged)
    stated = [(claim, what, *pair) for claim, what, pairs in CLAIMS for pair in pairs]
    same = [("C3", DEPENDS, "coherent", "cnn-dnn"), *stated]
    same += enough[["claim", "what", "a", "b"]].itertuples(index=False, name=None)
    rows = []
    for claim, what, a, b in dict.fromkeys(same):
        own = enough[(enough[["claim", "what", "a", "b"]] == [claim, what, a, b]).all(axis=1)]
        count = {word: int((own["verdict"] == word).sum()) for word in ("holds", "does not hold", "undecided")}
        sure = {word: own.loc[own["verdict"] == word, "p"].min() * len(own) <= 0.05 for word in count}
        holds = sure["holds"] and (claim == "C5" or not count["does not hold"])
        against = sure["does not hold"] and not count["holds"] and not (claim == "C5" and count["undecided"])
        word = "holds" if holds else "does not hold" if against else "undecided"
        ahead = pd.NA if what == DEPENDS else int((own["difference"] > 0).sum())
        said = {"claim": claim, "what": what.replace("average and vote", f"the {b}")}
        rows.append(said | count | {"ahead": ahead, "verdict": word if len(own) else "not run"})
    if times is not None:
        faster = times["parallel speed-up"] > 1
        count = {"holds": int(faster.sum()), "does not hold": int((~faster).sum()), "undecided": 0}
        what = "local training, a worker for each, is faster than the global CNN (no test: medians)"
        word = "holds" if faster.all() else "does not hold"
        said = {"claim": "C4", "what": what, **count, "ahead": int(faster.sum())}
        rows.append(said | {"verdict": word if len(times) else "not run"})
    table = pd.DataFrame(rows).astype({"ahead": "Int64"})
    return table.sort_values("claim", ignore_index=True, kind="stable")


def decisive(judged: "pd.DataFrame") -> "pd.DataFrame":
    """The rows of `judge` that a claim is judged by: three seeds or more, on whole training sets.

    On data of two classes, which are mostly unbalanced, that of the area under the ROC curve in place of that of the
    accuracy, where there is one.
    """
    enough = judged[(judged["n"] > 2) & ~judged["subset"].astype(bool)]
    better = enough.groupby(["claim", "what", *POINT, "a", "b"], dropna=False)["metric"].transform("nunique") > 1
    return enough[~better | (enough["metric"] == "AUC")]


def _within(found: Sequence[Record]) -> list[dict[str, Any]]:
    """`CLAIMS` of each point; controls of `_equal_budget` apart.  Points with a remedy are not the papers' way."""
    some = _plain(found)
    controls, groups, rows = _controls(some), points(some), []
    for claim, what, comparisons in CLAIMS:
        for settings, group in groups.items():
            for a, b in comparisons:
                for metric in ("accuracy", "AUC"):
                    both = [(record, record) for record in group if _has(record, a, metric) and _has(record, b, metric)]
                    if both:
                        said = f"{what}, both after 2E epochs" if settings in controls else what
                        rows.append(_row(claim, said, metric, both, a, b))
    return rows


def _equal_budget(found: Sequence[Record]) -> list[dict[str, Any]]:
    """`BUDGET`: pairs of points that differ in `epochs` alone, by a factor of two."""
    rows = []
    for pairs in _longer(_plain(found)):
        for claim, what, a, b, margin in BUDGET:
            both = [(one, two) for one, two in pairs if a in one.strategies and b in two.strategies]
            if both:
                rows.append(_row(claim, what, "accuracy", both, a, b, margin))
    return rows


def _between_backbones(found: Sequence[Record]) -> list[dict[str, Any]]:
    """C3: the difference between two backbones of (coherent − CNN-DNN), each at its own width.

    All other parameters are equal, the epochs too: longer training alone moves the lead.  Seeds are paired, though
    they share nothing but the order of the images.
    """
    some = _plain(found)
    controls, own = _controls(some), {"backbone", "width", "seed"}
    both = [r for r in some if {"coherent", "cnn-dnn"} <= set(r.strategies) and r.settings not in controls]
    alike: dict[str, list[list[Record]]] = {}
    for group in points(both).values():
        same = str(sorted((k, v) for k, v in group[0].parameters.items() if k not in own))
        alike.setdefault(same, []).append(group)
    rows = []
    for groups in alike.values():
        for one, two in combinations(groups, 2):
            seeds = {record.parameters["seed"]: record for record in two}
            pairs = [(r, seeds[r.parameters["seed"]]) for r in one if r.parameters["seed"] in seeds]
            if pairs and one[0].parameters["backbone"] != two[0].parameters["backbone"]:
                told = [f"{p['backbone']} (w {p['width']})" for p in (r.parameters for r in pairs[0])]
                both = {"backbone": " − ".join(told), "width": None}
                a, b = "coherent", "cnn-dnn"
                first, second = ([(r, r) for r in those] for those in zip(*pairs, strict=True))
                for metric in ("accuracy", "AUC"):
                    if all(_has(r, s, metric) for r, _ in (*first, *second) for s in (a, b)):
                        gaps = _gaps(first, a, b, metric) - _gaps(second, a, b, metric)
                        row = _row("C3", DEPENDS, metric, pairs, a, b, gaps=gaps)
                        word = {"does not hold": "holds"}.get(row["verdict"], row["verdict"])  # either sign is one
                        rows.append(row | both | {"verdict": word})
    return rows


def _remedies(found: Sequence[Record]) -> list[dict[str, Any]]:
    """What the options of `REMEDIES` change: a strategy with the option against the same without."""
    rows = []
    for option, strategies in REMEDIES.items():

        def without(parameters: dict[str, Any], option: str = option) -> dict[str, Any] | None:
            return {k: v for k, v in parameters.items() if k != option} if option in parameters else None

        for pairs in _twins(found, without):
            for strategy in strategies:
                both = [pair for pair in pairs if all(strategy in record.strategies for record in pair)]
                if both:
                    what = f"{option} makes {strategy} more accurate"
                    rows.append(_row("remedy", what, "accuracy", both, strategy, strategy))
    return rows


def _adjusted(judged: "pd.DataFrame") -> "pd.DataFrame":
    from scipy.stats import false_discovery_control

    result = judged.assign(**{"adjusted p": np.nan})
    for _, family in judged[judged["p"].notna() & ~judged["subset"].astype(bool)].groupby(["claim", "what", "metric"]):
        result.loc[family.index, "adjusted p"] = false_discovery_control(family["p"].to_numpy(float))
    result.loc[result["adjusted p"] > 0.05, "verdict"] = "undecided"
    return result


def _row(
    claim: str,
    what: str,
    metric: str,
    pairs: Pairs,
    a: str,
    b: str,
    margin: float = 0,
    gaps: "np.ndarray | None" = None,
) -> dict[str, Any]:
    """Records of several seeds, with strategy a and b; mostly the same one twice.

    `gaps` stands in place of `_gaps`.
    """
    tested = metric == "accuracy" and gaps is None
    gaps = _gaps(pairs, a, b, metric) if gaps is None else gaps
    differences, errors = _shares(gaps) if metric == "accuracy" else _areas(gaps)
    judged = verdict(100 * differences, margin, *(100 * error for error in errors))
    return {
        **{"claim": claim, "what": what, "metric": metric, **point(pairs[0][0]), "a": a, "b": b},
        "epochs of b": pairs[0][1].parameters["epochs"],
        "n": judged.n,
        "difference": judged.mean,
        "low": judged.low,
        "high": judged.high,
        "p": judged.p_value,
        "verdict": "undecided" if (subset := pairs[0][0].parameters.get("train_size") is not None) else judged.word,
        "McNemar": _mcnemar(pairs, a, b) if tested else np.nan,
        "subset": subset,
    }


def _mcnemar(pairs: Pairs, a: str, b: str) -> float:
    tests = [
        paired_test(one.arrays["labels"], one.predicted(a).squeeze(), two.predicted(b).squeeze()) for one, two in pairs
    ]
    return max(test.p_value for test in tests) if len({np.sign(test.difference) for test in tests}) == 1 else 1.0


def _gaps(pairs: Pairs, a: str, b: str, metric: str) -> np.ndarray:
    """a − b for each seed and test image (seeds, n): one is right and the other not, in −1, 0, 1.

    AUC: for each pair of a positive and a negative image (seeds, positives, negatives), the positive one scored higher.
    """

    def marks(record: Record, strategy: str) -> np.ndarray:
        labels = record.arrays["labels"]
        if metric == "accuracy":
            return (record.predicted(strategy).squeeze() == labels).astype(float)
        score = record.arrays[f"score/{strategy}"].squeeze()
        gap = score[labels == 1][:, None] - score[labels == 0]
        return (gap > 0) + 0.5 * (gap == 0)

    return np.array([marks(one, a) - marks(two, b) for one, two in pairs])


def _shares(gaps: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Differences in accuracy by seed, and their `_image_errors`, with an image more for each side.

    Or there would be no error where two strategies are right on the same images (Bonett and Price 2012).
    """
    return gaps.mean(1), _image_errors(np.hstack([gaps, np.tile([1.0, -1.0], (len(gaps), 1))]))


def _areas(gaps: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Differences in the area under the ROC curve, by seed, and their errors as of `_image_errors`.

    The latter by the placements of each image among those of the other class (DeLong, DeLong and Clarke-Pearson 1988).
    """
    shared, every = np.hypot(_image_errors(gaps.mean(2)), _image_errors(gaps.mean(1)))
    return gaps.mean((1, 2)), (shared, every)


def _image_errors(gaps: np.ndarray) -> tuple[float, float]:
    """Standard errors of the mean of `gaps` (seeds, n) that the n images leave: what all seeds share, and all of it.

    What is noise of an image in a single seed is in the spread of the seeds already: the first is without it.
    """
    seeds, images = gaps.shape
    mean = gaps.mean(0)
    noise = ((gaps - mean - gaps.mean(1, keepdims=True) + gaps.mean()) ** 2).sum() / max((seeds - 1) * (images - 1), 1)
    every = mean.var(ddof=1)
    return math.sqrt(max(every - noise / seeds, 0) / images), math.sqrt(every / images)


def _has(record: Record, strategy: str, metric: str) -> bool:
    return strategy in record.strategies and (metric == "accuracy" or strategy in scored(record))


def _plain(found: Iterable[Record]) -> list[Record]:
    """Without those that have an option of `REMEDIES`."""
    return [record for record in found if not set(REMEDIES) & set(record.parameters)]


def _controls(found: Sequence[Record]) -> set[str]:
    """Settings of the points that are there for `_equal_budget` alone: nothing is trained twice in them."""
    twice = {record.settings for record in found if {"transfer", "channels"} & set(record.strategies)}
    return {twin.settings for pairs in _longer(found) for _, twin in pairs} - twice


def _longer(found: Sequence[Record]) -> list[list[tuple[Record, Record]]]:
    return _twins(found, lambda parameters: {**parameters, "epochs": 2 * parameters["epochs"]})


def _twins(
    found: Sequence[Record], changed: Callable[[dict[str, Any]], dict[str, Any] | None]
) -> list[list[tuple[Record, Record]]]:
    """For each point, pairs (record, that of the changed parameters), a pair a seed; those that there are."""
    known = {record.name: record for record in found}
    groups = []
    for some in points(found).values():
        others = [(record, changed(record.parameters)) for record in some]
        twins = [(record, known.get(records.record_name(other))) for record, other in others if other is not None]
        groups.append([(record, twin) for record, twin in twins if twin is not None])
    return [pairs for pairs in groups if pairs]
