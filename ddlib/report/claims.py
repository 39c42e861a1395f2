"""Do the papers' claims hold here?  Strategies compared on the same test images, row by row and over all rows.

A row is one comparison at one point of a table.  Everything is drawn from records; nothing here trains.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..decomposition import parse_grid
from ..strategies import STRATEGIES
from ..study.records import VARIANT, Record
from .effects import SET, Row, effect, moderate
from .tables import POINT, by_settings, point, scored

if TYPE_CHECKING:
    import pandas as pd


class Comparison(NamedTuple):
    """Strategy `a` against strategy `b`.

    Where a is trained for E epochs, b is for `times` · E; with an `option` of `Experiment`, a has it and b has not.
    """

    claim: str
    a: str
    b: str
    times: int = 1
    option: str = ""

    @property
    def training(self) -> str:
        """Epochs of a against those of b: "E + E : 2E"."""
        one, other = ("E + E" if STRATEGIES[strategy].trained_twice else "E" for strategy in (self.a, self.b))
        return f"{one} : {other if self.times == 1 else f'{self.times}E'}"


CLAIMS = (
    Comparison("C1", "cnn-dnn", "average"),
    Comparison("C1", "cnn-dnn", "vote"),
    Comparison("C2", "transfer", "cnn-dnn"),
    Comparison("C2", "transfer", "cnn-dnn", times=2),
    Comparison("C2", "transfer", "coherent", times=2),
    Comparison("C3", "coherent", "cnn-dnn"),
    Comparison("C5", "cnn-dnn", "global"),
    Comparison("C6", "channels", "global"),
    Comparison("C6", "channels", "global", times=2),
    Comparison("C7", "transfer", "global"),
    Comparison("C7", "transfer", "global", times=2),
    # ours: aggregates without a dense network, and one of another kind
    Comparison("average", "average", "global"),
    Comparison("geometric", "geometric", "average"),
    Comparison("geometric", "geometric", "global"),
    Comparison("correction", "correction", "average"),
    Comparison("correction", "correction", "cnn-dnn"),
    Comparison("correction", "correction", "global"),
    Comparison("remedy", "cnn-dnn", "cnn-dnn", option="out_of_fold"),
    Comparison("remedy", "transfer", "transfer", option="out_of_fold"),
    Comparison("remedy", "cnn-dnn", "cnn-dnn", option="log_probabilities"),
    Comparison("remedy", "transfer", "transfer", option="log_probabilities"),
    Comparison("remedy", "coherent", "coherent", option="local_losses"),
    Comparison("remedy", "transfer", "transfer", option="local_losses"),
)
OPTIONS = {comparison.option for comparison in CLAIMS} - {""}
# what the papers claim, in words; C4 is a clock's (04_training_time), C8 is in 09_two_decompositions
WORDS = {
    "C1": "the CNN-DNN is more accurate than average and vote",
    "C2": "transfer is more accurate than the CNN-DNN",
    "C3": "how the coherent model compares depends on the backbone",
    "C4": "a local CNN is trained much faster than the global CNN",
    "C5": "the CNN-DNN can be more accurate than the global CNN",
    "C6": "composed sub-networks speed up training, with almost no loss",
    "C7": "transfer is more accurate than the global CNN",
    "C8": "LDA in windows is more accurate than one LDA",
}
COMPARED = ["claim", "a", "b", "training", "option"]  # what names a comparison in a table
VERDICTS = ["ahead", "level", "behind", "open"]
EFFECT = ["difference", "low", "high", "low 90", "high 90", "seed error", "image error", "p"]
METHOD = {*VARIANT, "dense_epochs"} - {"options", "train_size", "channel_parts"}  # what problem and parts do not say
SCOPES = (("all",), ("regime",), ("problem",), ("way",), ("parts",), ("problem", "regime"), ("problem", "parts"))
# what may change a comparison: its name, what differs between two rows that agree in all else, and the two values
CHOICES = (
    ("4 → 16 windows", "parts", "4 windows", "16 windows"),
    ("no overlap → 4 pixels or more", "overlaps", False, True),
    ("local CNNs of width w/√N → w", "wide", False, True),
    ("no coarse window → one", "coarse", False, True),
    ("short training → 150 epochs", "regime", "short", "long"),
)
LEVEL = 1.0  # points: what is called level lies within that much on either side (ours)
PATH = re.compile(r'\bpath=("[^"]*"|\S+)')  # a folder of images, among the options of its data set
LONG = 150  # epochs, P1's number: its regime begins here, what is shorter is the short one


def compare(found: Sequence[Record]) -> list[Row]:
    """Every comparison of `CLAIMS` that the records allow, a row a point; variances of seeds are moderated."""
    by_parameters = {frozenset(record.parameters.items()): record for record in found}
    rows = []
    for asked in CLAIMS:
        for seeds in by_settings(found).values():
            pairs = _pairs(asked, seeds, by_parameters)
            if pairs:
                rows.append(_row(asked, pairs))
    moderate(rows)
    return rows


def _pairs(
    asked: Comparison, seeds: Sequence[Record], by_parameters: dict[frozenset, Record]
) -> list[tuple[Record, Record]]:
    """For each seed of a point, the record with a and that with b, where there are both; mostly the same one twice."""
    pairs = []
    for record in seeds:
        parameters = dict(record.parameters)
        if OPTIONS & set(parameters) != {asked.option} - {""}:
            continue  # a remedy, or not the option in question
        parameters.pop(asked.option, None)
        parameters["epochs"] *= asked.times
        other = by_parameters.get(frozenset(parameters.items()))
        if other and asked.a in record.strategies and asked.b in other.strategies:
            pairs.append((record, other))
    return pairs


def _row(asked: Comparison, pairs: Sequence[tuple[Record, Record]]) -> Row:
    right = [_right(one, asked.a) - _right(other, asked.b) for one, other in pairs]
    area = all(asked.a in scored(one) and asked.b in scored(other) for one, other in pairs)
    gaps = [_pairwise_wins(one, asked.a) - _pairwise_wins(other, asked.b) for one, other in pairs] if area else right
    first = pairs[0][0]
    size = first.parameters.get("train_size")
    about = {name: getattr(asked, name) for name in COMPARED}
    about |= {"metric": "AUC" if area else "accuracy", **point(first), "n": len(pairs)}
    about["source"] = source(about)
    about["problem"] = about["source"] + (f", {size} images" if size else "")
    about["regime"] = "short" if about["epochs"] < LONG else "long"
    about["parts"], about["way"] = _parts(first), way(about["variant"]) or "default"
    about["in accuracy"] = 100 * float(np.mean(right))
    return Row.of(about | {"comparison": asked}, gaps, first.arrays["labels"] if area else None)


def source(row: Mapping[str, Any]) -> str:
    """Where the images of a row with `POINT` are from: its data set, and of a folder of one's own its path."""
    folder = PATH.search(row["variant"])
    return row["dataset"] + (f" {folder[0]}" if folder else "")


def _parts(record: Record) -> str:
    """Into what the global CNN was split: "16 windows", "regions", "2 sub-networks"."""
    if count := record.parameters.get("channel_parts"):
        return f"{count} sub-networks"
    grid = record.parameters["grid"]
    return grid if grid == "regions" else f"{math.prod(parse_grid(grid))} windows"


def way(variant: str) -> str:
    """How the method was varied, from `Record.variant`: "local width full, coarse"; nothing by default."""
    given = dict(part.split("=", 1) for part in re.split(r" (?=\w+=)", variant) if part)
    options = [(name.replace("_", " "), value) for name, value in given.items() if name in METHOD]
    return ", ".join(name if value == "True" else f"{name} {value}" for name, value in options)


def _right(record: Record, strategy: str) -> np.ndarray:
    """(n,): is a test image put into its class?"""
    return (record.predicted(strategy).squeeze() == record.arrays["labels"]).astype(float)


def _pairwise_wins(record: Record, strategy: str) -> np.ndarray:
    """(positives, negatives): is a positive test image scored higher than a negative one?  A half where as high."""
    labels, score = record.arrays["labels"], record.arrays[f"score/{strategy}"].squeeze()
    gap = score[labels == 1][:, None] - score[labels == 0]
    return (gap > 0) + 0.5 * (gap == 0)


def judge(found: Sequence[Record]) -> "pd.DataFrame":
    """Every comparison that the records allow, with its verdict: `as_table` of `compare`."""
    return as_table(compare(found))


def as_table(rows: Sequence[Row]) -> "pd.DataFrame":
    """A row a comparison and point, with its verdict.

    Columns: `COMPARED`, metric (AUC on data of two classes where both have it, else accuracy), problem (the data set,
    its folder if it is one's own, and how many training images where not all), `POINT`, regime, parts, way, n seeds,
    the difference in accuracy whatever the metric, those of `effect`, and adjusted p: for the rows of a claim
    (Benjamini and Hochberg 1995).

    *ahead* and *behind* have an adjusted p of at most 0.05; of the others those whose 90 % interval lies within
    ±`LEVEL` are *level*, the rest *open*.  Rows of fewer than three seeds are open, whatever their interval.
    """
    import pandas as pd
    from scipy.stats import false_discovery_control

    names = [
        *COMPARED,
        "metric",
        "problem",
        *POINT,
        "regime",
        "parts",
        "way",
        "n",
        "in accuracy",
        *EFFECT,
        "adjusted p",
    ]
    table = pd.DataFrame([row.about | effect([row]) for row in rows], columns=names)
    judged = table["n"] >= 3
    for _, family in table[judged].groupby("claim"):
        table.loc[family.index, "adjusted p"] = false_discovery_control(family["p"])
    return table.assign(verdict=np.where(judged, _verdicts(table, table["adjusted p"]), "open"))


def _verdicts(table: "pd.DataFrame", p: "pd.Series") -> np.ndarray:
    """`VERDICTS` of effects, by the p-values that count."""
    level = (table["low 90"] > -LEVEL) & (table["high 90"] < LEVEL)
    differ = p <= 0.05
    return np.select([differ & (table["difference"] > 0), differ, level], ["ahead", "behind", "level"], "open")


def pool(rows: Sequence[Row], judged: "pd.DataFrame") -> "pd.DataFrame":
    """The mean effect of each comparison: over all its rows, and over those of each regime, problem and so on.

    Columns: `COMPARED`, over (by what the rows are chosen, `SCOPES`) and scope (its value), metric, rows, sets (of the
    same global CNNs), the most seeds of a row, how many rows have each verdict, the difference in accuracy, those of
    `effect`, and verdict, that of the mean: its p-value is not corrected.  The scope "another problem" is what one more
    may bring, drawn as these were: the interval is Student's for one more of their means.

    Args:
        rows: of `compare`.
        judged: `as_table` of these rows.
    """
    import pandas as pd

    found = []
    for names, same in judged.assign(all="all").groupby(COMPARED, sort=False):
        own = []
        for over in SCOPES:
            for scope, some in same.groupby(list(over), sort=False):
                about = dict(zip(COMPARED, names, strict=True)) | {"over": ", ".join(over), "scope": ", ".join(scope)}
                about |= {"metric": " and ".join(sorted(set(some["metric"]))), "rows": len(some)}
                about |= {"sets": len(some[list(SET)].drop_duplicates()), "seeds": some["n"].max()}
                about |= {verdict: int((some["verdict"] == verdict).sum()) for verdict in VERDICTS}
                about["in accuracy"] = some["in accuracy"].mean()
                own.append(about | effect([rows[k] for k in some.index]))
        found += [*own, *_another(pd.DataFrame(own))]
    names = [*COMPARED, "over", "scope", "metric", "rows", "sets", "seeds", *VERDICTS, "in accuracy", *EFFECT]
    table = pd.DataFrame(found, columns=names)
    return table.assign(verdict=np.where(table["seeds"] < 3, "open", _verdicts(table, table["p"])))


def hangs_on(judged: "pd.DataFrame") -> "pd.DataFrame":
    """By how much each comparison changes with each of `CHOICES`, over pairs of rows that agree in all else.

    Columns: `COMPARED`, choice, pairs, and in points the mean change, the least and the greatest.

    Args:
        judged: `as_table`, or claims.csv.
    """
    import pandas as pd

    follows = {"parts": "grid", "overlaps": "overlap", "regime": "epochs"}
    texts = ["option", "variant"]  # an empty one is NaN in a table that was read
    judged = judged.astype(dict.fromkeys(texts, object)).fillna(dict.fromkeys(texts, ""))
    usual = judged[(judged["option"] == "") & ~judged["overlap"].between(1, 3)]
    wide, coarse = (usual["variant"].str.contains(option) for option in ("local_width=full", "coarse=True"))
    other = usual["variant"].str.replace(r" ?(local_width=full|coarse=True)", "", regex=True).str.strip()
    usual = usual.assign(overlaps=usual["overlap"] > 0, wide=wide, coarse=coarse, variant=other)
    usual = usual.sort_values(["epochs", "overlap"])
    columns, found = [*COMPARED, "problem", *POINT, "metric", "parts", "regime", "overlaps", "wide", "coarse"], []
    for choice, name, low, high in CHOICES:
        same = [column for column in columns if column not in (name, follows.get(name))]
        halves = (usual[usual[name] == value].drop_duplicates(same).set_index(same) for value in (low, high))
        one, other = (half["difference"] for half in halves)
        changes = (other - one).dropna().groupby(COMPARED, sort=False)
        found.append(changes.agg(["size", "mean", "min", "max"]).reset_index().assign(choice=choice))
    return pd.concat(found).rename(columns={"size": "pairs"})


def _another(own: "pd.DataFrame") -> list[dict[str, Any]]:
    """The row of one more problem, where there are three or more; `own` has those of a comparison."""
    from scipy.stats import t

    problems = own[own["over"] == "problem"]
    if len(problems) < 3:
        return []
    mean, error = problems["difference"].mean(), problems["difference"].std() * math.sqrt(1 + 1 / len(problems))
    row = problems.iloc[0][COMPARED].to_dict() | {"over": "another problem", "scope": "another problem"}
    row |= {"metric": own["metric"].iloc[0], "rows": len(problems), "in accuracy": problems["in accuracy"].mean()}
    for share, names in ((0.95, ("low", "high")), (0.9, ("low 90", "high 90"))):
        reach = t.isf((1 - share) / 2, len(problems) - 1) * error
        row |= dict(zip(names, (mean - reach, mean + reach), strict=True))
    return [row | {"difference": mean, "p": float(2 * t.sf(abs(mean) / error, len(problems) - 1))}]
