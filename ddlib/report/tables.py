"""What the records say as a whole: accuracies, areas under the ROC curve, costs, and what was not run.

Everything is drawn from records; nothing here trains.
"""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from .._internal import checks
from ..study import records
from ..study.experiment import Experiment
from ..study.parameters import resolve
from ..study.records import Record
from ..study.trainings import seconds

if TYPE_CHECKING:
    import pandas as pd

# the committed records of real data; `results/quick` and `results/precision` have points of the same names
FOLDERS = (
    "results/cifar10",
    "results/cifar10_resnet20",
    "results/cifar10_mobilenet",
    "results/flowers",
    "results/flowers_resnet20",
    "results/nodules",
    "results/nodules_vgg9",
    "results/adrenal",
    "results/faces",
    "results/channels",
    "results/150_epochs",
    "results/what_pays",
)
POINT = ("dataset", "backbone", "width", "grid", "overlap", "epochs", "augment", "variant")  # one row of a table
TIMED = ("images", "grid", "overlap", "backbone", "width")  # what identifies a row of the training-time table


def read(folders: str | Iterable[str | Path]) -> list[Record]:
    """All records below some folders, each once, by `POINT` and seed; relative folders lie below the project's root.

    Args:
        folders: written with spaces, or a list.

    Raises:
        FileNotFoundError: a folder that is not there.
        ValueError: two different records of the same parameters.
        files.DamagedFile: a record that is not what was written.
    """
    found: list[Record] = []
    for folder in map(resolve, folders.split() if isinstance(folders, str) else folders):
        found += sorted(records.load_all(folder), key=lambda r: (*point(r).values(), r.parameters["seed"]))
    return records.once(found)


def by_settings(found: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by `Record.settings`, that is by all their parameters but the seed; every seed once."""
    groups: dict[str, dict[int, Record]] = {}
    for record in found:
        groups.setdefault(record.settings, {})[record.parameters["seed"]] = record
    return {settings: list(seeds.values()) for settings, seeds in groups.items()}


def point(record: Record) -> dict[str, Any]:
    """The values of `POINT`."""
    words = {"augment": "yes" if record.parameters["augment"] else "no", "variant": record.variant}
    return {name: words[name] if name in words else record.parameters[name] for name in POINT}


def most_frequent(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Of the rows of `gather`, those of the most frequent width, epochs and variant: what a plot can join."""
    regime = frame[["width", "epochs", "augment", "variant"]].astype(str).agg("/".join, axis=1)
    return frame[regime == regime.mode().iloc[0]] if len(frame) else frame


def coverage(found: Iterable[Record], planned: Iterable[Experiment]) -> "pd.DataFrame":
    """Each planned point: how many of its seeds are on record with all their strategies, or "not run"."""
    import pandas as pd

    there = {record.name: record for record in found}
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for asked in planned:
        shown = point(Record(asked.parameters, [], {}))
        row = rows.setdefault(tuple(shown.values()), {**shown, "seeds asked": 0, "on record": 0})
        row["seeds asked"] += 1
        row["on record"] += asked.name in there and {*asked.strategies} <= {*there[asked.name].strategies}
    frame = pd.DataFrame(rows.values())
    partly = np.where(frame["on record"] < frame["seeds asked"], "partly", "complete")
    return frame.assign(state=np.where(frame["on record"] == 0, "not run", partly))


def accuracy_table(frame: "pd.DataFrame", numbers: bool = False) -> "pd.DataFrame":
    """Test accuracy in % as a table for readers: a row a decomposition and regime, a column a strategy.

    The regime is the number of epochs, whether the training images were augmented, and options (`variant`).  `local`
    and `sub-networks` are means over the networks.  With several seeds: mean ± standard deviation over seeds (n).
    `frame` is what `records.gather` gives.  With `numbers`, for styles and sorting: three columns a strategy, mean, std
    and n, in place of the text.

    Raises:
        ValueError: records of different parameters would share a row, or two of one point differ.
    """
    same = [name for name in ("record", "strategy", "subdomain") if name in frame]
    if "record" in same and (differ := frame.groupby(same)["test_accuracy"].nunique().gt(1)).any():
        raise ValueError(f"two different records are called {differ.idxmax()[0]}: choose between them.")
    place = [name for name in POINT if name in frame and (name != "variant" or frame["variant"].any())]
    if "settings" in frame and (frame.groupby([*place, "strategy"])["settings"].nunique() > 1).any():
        raise ValueError("records of different parameters (rate, batch_size, …) would share a row: choose among them.")
    if "computed" in frame:
        mixed = frame.groupby([*place, "strategy"])["computed"].unique()
        for row, ways in mixed[mixed.map(len) > 1].items():
            warnings.warn(f"the row {' '.join(map(str, row))} mixes {' with '.join(sorted(ways))}.", stacklevel=2)
    seeds = 100 * frame.groupby([*place, "strategy", "seed"], sort=False)["test_accuracy"].mean()
    if numbers:
        cells = seeds.groupby([*place, "strategy"], sort=False).agg(["mean", "std", "count"])
        return cells.rename(columns={"count": "n"}).unstack("strategy").swaplevel(axis=1)
    return over_seeds(seeds, place, list(dict.fromkeys(frame["strategy"])))


def over_seeds(seeds: "pd.Series", place: Sequence[str], strategies: Sequence[str]) -> "pd.DataFrame":
    """Figures by place, strategy and seed as text, mean ± standard deviation (n); a column a strategy."""
    cells = seeds.groupby([*place, "strategy"], sort=False).agg(_mean_and_deviation)
    rows = cells.index.droplevel("strategy").unique()  # in the order of the frame
    return cells.unstack("strategy").loc[rows, list(strategies)].rename_axis(columns=None)


def _mean_and_deviation(percent: "pd.Series") -> str:
    if len(percent) == 1:
        return f"{percent.iloc[0]:.1f}"
    return f"{percent.mean():.1f} ± {percent.std():.1f} ({len(percent)})"


def interval(right: float, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for an accuracy of `right` out of `total` test images, as shares in [0, 1].

    Raises:
        ValueError: numbers that are not whole, but for rounding, or more right than there are.
    """
    from scipy.stats import binomtest

    total = checks.integer("total", total, 1)
    right = checks.integer("right", round(right, 6), 0, total)  # 0.29 * 100 is a little less than 29
    found = binomtest(right, total).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def epochs_to_reach(accuracies: ArrayLike, target: float, first: int = 1) -> int | None:
    """The first epoch whose accuracy is at least `target`; None when none is.

    `first` is the epoch of the first accuracy: 0 where they begin with that before any training, which may be NaN.
    """
    reached = np.flatnonzero(np.asarray(accuracies) >= target)
    return int(reached[0]) + first if len(reached) else None


def scored(record: Record) -> list[str]:
    """Strategies with a score of the second class, but the vote: its score there breaks ties by the average."""
    names = [name.removeprefix("score/") for name in record.arrays if name.startswith("score/")]
    return [name for name in names if name != "vote"]


def scores(found: Iterable[Record]) -> "pd.DataFrame":
    """Area under the ROC curve, in %, of each strategy on data of two classes, beside its accuracy.

    `larger class` is the accuracy of always answering the more frequent class.
    """
    import pandas as pd
    from sklearn.metrics import roc_auc_score

    rows = []
    for record in found:
        labels = record.arrays["labels"]
        for strategy in scored(record):
            figures = {
                "AUC": np.mean([roc_auc_score(labels, s) for s in np.atleast_2d(record.arrays[f"score/{strategy}"])]),
                "accuracy": (np.atleast_2d(record.predicted(strategy)) == labels).mean(),
                "larger class": np.bincount(labels).max() / len(labels),
            }
            figures = {name: 100 * float(value) for name, value in figures.items()}
            rows.append({**point(record), "seed": record.parameters["seed"], "strategy": strategy, **figures})
    return pd.DataFrame(rows)


def costs(found: Iterable[Record], times: "pd.DataFrame | None" = None) -> "pd.DataFrame":
    """Test accuracy and seconds of training of every strategy: on one machine, and with a worker for each network.

    The latter (`parallel`) counts the longest local training.  Where local CNNs were trained together none was timed
    alone: their seconds are then scaled by longest local / fused of `times`, the training-time table
    (04_training_time), and are NaN where it lacks the decomposition.  Records whose device was shared with other
    trainings (`provenance`) tell no time and are left out.
    """
    import pandas as pd

    rows, found = [], [record for record in found if not record.provenance.get("shared")]
    shapes = {_images(r): r.provenance["image_shape"] for r in found if "image_shape" in r.provenance}
    for record in found:
        history = _timed_alone(record, times, shapes.get(_images(record)))
        same = {**point(record), "settings": record.settings, "seed": record.parameters["seed"]}
        for strategy, value in record.frame().groupby("strategy", sort=False)["test_accuracy"].mean().items():
            spent = {how: seconds(history, strategy, how == "parallel") for how in ("one machine", "parallel")}
            row = {**same, "strategy": strategy, "test_accuracy": value, **spent}
            if strategy == "global":  # the same network, whatever stands beside it
                options = [o for o in record.variant.split() if not o.startswith(("channel_parts", "samples"))]
                row |= {"grid": "1x1", "overlap": 0, "settings": "", "variant": " ".join(options)}
            rows.append(row)
    if not rows:
        return pd.DataFrame()
    about = [name for name in rows[0] if name not in ("one machine", "parallel")]
    # the global CNN of a seed may stand in several records: its seconds are their mean
    return pd.DataFrame(rows).groupby(about, sort=False, dropna=False).mean().reset_index()


def pareto(costs: "pd.DataFrame", by: str = "one machine") -> "pd.DataFrame":
    """The rows that no other row beats both in seconds and in test accuracy, by seconds; means over seeds."""
    same = [column for column in (*POINT, "settings", "strategy") if column in costs]
    means = costs.dropna(subset=[by]).groupby(same, sort=False)[[by, "test_accuracy"]].mean().reset_index()
    ordered = means.sort_values([by, "test_accuracy"], ascending=[True, False])
    best = ordered["test_accuracy"].cummax()
    return ordered[ordered["test_accuracy"].gt(best.shift(fill_value=-1))]


def speed_ups(clocks: "pd.DataFrame") -> "pd.DataFrame":
    """C4: how many times faster than the global CNN, a row a machine; columns as `pages.in_words` needs them.

    Args:
        clocks: training-time tables (04_training_time) with their machine.
    """
    by_machine = clocks.groupby("machine", sort=False)["parallel speed-up"]
    table = by_machine.agg(
        rows="size", faster=lambda x: (x > 1).sum(), slower=lambda x: (x <= 1).sum(), least="min", most="max"
    )
    for name, column in {"geometric mean": "parallel speed-up", "one machine": "one-machine speed-up"}.items():
        table[name] = np.exp(np.log(clocks[column]).groupby(clocks["machine"]).mean())
    return table


def ties(found: Iterable[Record]) -> "pd.DataFrame":
    """What it is worth, in points, that a vote's ties go to the class of higher average probability (`worth`).

    Against the first of the tied classes, a plain argmax of counts; means over seeds, a row a point.
    """
    import pandas as pd

    voted = []
    for record in found:
        if {"local", "vote"} <= {*record.strategies} and "ties" not in record.parameters:
            labels, votes = record.arrays["labels"], record.predicted("local")  # (n,), (N, n)
            first = np.stack([(votes == k).sum(0) for k in range(votes.max() + 1)]).argmax(0)
            worth = (record.predicted("vote").squeeze() == labels).mean() - (first == labels).mean()
            voted.append({**point(record), "worth": 100 * worth})
    if not voted:
        return pd.DataFrame(columns=[*POINT, "worth"])
    return pd.DataFrame(voted).groupby([*POINT], sort=False)["worth"].mean().reset_index()


def equal_time(tables: "dict[str, pd.DataFrame]") -> "pd.DataFrame":
    """Points of composed networks above the line that random weights reach after E and 2E epochs, in the same time.

    Columns: data, channel_parts, workers, above the line, and the time as a share of 2E epochs; means over seeds.

    Args:
        tables: time_to_accuracy.csv of 07_channel_decomposition, by data.
    """
    import pandas as pd

    rows = []
    for name, table in tables.items():
        ends = sorted(table["epochs"].unique())[:: len(table["epochs"].unique()) - 1]  # E and 2E
        whole = table[table["channel_parts"] == 0].set_index(["seed", "epochs"])[["seconds", "test_accuracy"]]
        for row in table[(table["channel_parts"] > 0) & (table["epochs"] == ends[0])].to_dict("records"):
            line = whole.sort_index().loc[row["seed"]].loc[ends]
            above = 100 * (row["test_accuracy"] - np.interp(row["seconds"], line["seconds"], line["test_accuracy"]))
            share = row["seconds"] / line["seconds"].iloc[1]
            rows.append({"data": name, **row, "above the line": above, "share of the time": share})
    shown = ["above the line", "share of the time"]
    return pd.DataFrame(rows).groupby(["data", "channel_parts", "workers"])[shown].mean().reset_index()


def behind(frame: "pd.DataFrame", found: Iterable[Record]) -> "pd.DataFrame":
    """What is behind the accuracies, in %: of training, lowest and highest run, and Wilson's interval of one run."""
    import pandas as pd

    table = frame.groupby([*POINT, "strategy"], sort=False).agg(
        train=("train_accuracy", "mean"),
        test=("test_accuracy", "mean"),
        lowest=("test_accuracy", "min"),
        highest=("test_accuracy", "max"),
        parameters=("parameters", "max"),
        record=("record", "first"),
    )
    images = table.pop("record").map({record.name: len(record.arrays["labels"]) for record in found})
    ends = [interval(round(share * n), n) for share, n in zip(table["test"], images, strict=True)]
    table = table.join(pd.DataFrame(ends, table.index, ["low", "high"]))
    shares = ["train", "test", "lowest", "highest", "low", "high"]
    table[shares] = (100 * table[shares]).round(1)
    return table.reset_index()


def _images(record: Record) -> tuple[Any, ...]:
    """What settles the size of the images; early records do not have it, but others of the same images may."""
    return record.parameters["dataset"], record.parameters.get("options")


def _timed_alone(record: Record, times: "pd.DataFrame | None", image_shape: Sequence[int] | None) -> "pd.DataFrame":
    """The history; where local CNNs were trained together, with seconds alone as the training-time table has them."""
    history = record.history()
    if times is None or image_shape is None:
        return history
    alone = history["seconds_longest"] if "seconds_longest" in history else history["seconds"] * np.nan
    grid, images = record.parameters["grid"].replace("x", "×"), "×".join(map(str, image_shape))
    own = record.parameters | {"grid": grid, "images": images}
    row = times[np.logical_and.reduce([times[name] == own[name] for name in TIMED])]
    share = (row["longest local"] / row["fused"]).mean()  # NaN where there is no such row
    together = history["stage"].str.startswith("local")
    return history.assign(seconds_longest=alone.where(alone.notna() | ~together, history["seconds"] * share))
