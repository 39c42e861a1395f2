"""What the records say as a whole: tables, costs, what was not run, and published values beside ours.

Everything is drawn from records; nothing here trains.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import checks
from ..study import records
from ..study.experiment import Experiment
from ..study.parameters import resolve
from ..study.records import Record
from ..study.stages import STRATEGIES, seconds
from .evaluation import accuracy_table

if TYPE_CHECKING:
    import pandas as pd

# the committed records of real data; `results/quick` and `results/precision` have points of the same names
FOLDERS = (
    *("results/cifar10", "results/cifar10_resnet20", "results/cifar10_mobilenet"),
    *("results/flowers", "results/flowers_resnet20", "results/nodules", "results/nodules_vgg9"),
    *("results/adrenal", "results/faces", "results/channels"),
)
PUBLISHED = ("dataset", "backbone", "grid", "overlap", "strategy", "test_accuracy", "source")  # of the reader's file
TIMED = ("images", "grid", "overlap", "backbone", "width")  # what identifies a row of the training-time table
POINT = ("dataset", "backbone", "width", "grid", "overlap", "epochs", "variant")  # one row of a table


def points(found: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by `Record.settings`, that is by all their parameters but the seed; every seed once."""
    groups: dict[str, dict[int, Record]] = {}
    for record in found:
        groups.setdefault(record.settings, {})[record.parameters["seed"]] = record
    return {settings: list(seeds.values()) for settings, seeds in groups.items()}


def point(record: Record) -> dict[str, Any]:
    """The values of `POINT`."""
    return {**{name: record.parameters[name] for name in POINT[:-1]}, "variant": record.variant}


def published(path: str | Path, frame: "pd.DataFrame") -> "pd.DataFrame":
    """Accuracies that a reader copied from the papers, beside ours (`frame`, of `gather`).

    The file is a CSV with the columns dataset, backbone, grid, overlap, strategy, test_accuracy (in %) and source;
    lines that start with # are comments; a relative path lies below the project's root.  Ours is mean ± standard
    deviation over seeds (n): a row for each width, number of epochs and variant, one with "not run" where there is
    none.  The global CNN's grid and overlap do not matter and may be empty.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column that lacks, or a value that is not allowed, with its row.
    """
    import pandas as pd

    file = _file(path)
    text = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip() and line[0] != "#"]
    head, *lines = list(csv.reader(text)) or [[]]
    if head != list(PUBLISHED):
        raise ValueError(f"{file.name} must have the columns {', '.join(PUBLISHED)}, got {', '.join(head)}.")
    table = accuracy_table(frame[~frame["variant"].str.contains("channel_parts")]).reset_index()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = _published_row(line)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file.name}, row {number}: {error}") from error
        same = ("dataset", "backbone") if row["strategy"] == "global" else PUBLISHED[:4]
        ours = table[np.logical_and.reduce([table[name] == row[name] for name in same])]
        ours = ours.dropna(subset=row["strategy"]) if row["strategy"] in ours else ours[:0]
        told = [("width", "Int64"), ("epochs", "Int64"), ("variant", str)]
        found = ours.rename(columns={row["strategy"]: "ours, %"}).reindex(columns=[*dict(told), "ours, %"])
        found = found.drop_duplicates().to_dict("records") or [{"ours, %": "not run"}]
        rows += [row | one for one in found]
    columns = [*PUBLISHED[:5], "published, %", "source", "width", "epochs", "variant", "ours, %"]
    return pd.DataFrame(rows, columns=columns).astype({"width": "Int64", "epochs": "Int64"})


def _published_row(fields: list[str]) -> dict[str, Any]:
    if len(fields) != len(PUBLISHED):
        raise ValueError(f"{len(PUBLISHED)} fields are needed, got {len(fields)}; quote a field that has a comma.")
    row: dict[str, Any] = dict(zip(PUBLISHED, map(str.strip, fields), strict=True))
    if checks.one_of("strategy", row["strategy"], STRATEGIES) == "global":
        row |= {"grid": row["grid"] or "1x1", "overlap": row["overlap"] or "0"}
    for name in ("overlap", "test_accuracy"):
        try:
            row[name] = float(row[name])
        except ValueError:
            raise ValueError(f"{name} must be a number, got {row[name]!r}.") from None
    if 0 < row["test_accuracy"] <= 1:
        raise ValueError(f"test_accuracy is in %, got {row['test_accuracy']}.")
    row["published, %"] = checks.real("test_accuracy", row.pop("test_accuracy"), 0, 100)
    asked = Experiment(row["dataset"], row["backbone"], row["grid"], row["overlap"])
    return row | {"grid": asked.grid, "overlap": asked.overlap}


def alike(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Of the rows of `gather`, those at the most frequent width, number of epochs and variant: what a plot can join."""
    kind = frame[["width", "epochs", "variant"]].astype(str).agg("/".join, axis=1)
    return frame[kind == kind.mode().iloc[0]] if len(frame) else frame


def costs(found: Iterable[Record], times: "pd.DataFrame | None" = None) -> "pd.DataFrame":
    """Test accuracy and seconds of training of every strategy: on one machine, and with a worker for each network.

    The latter (`parallel`) counts the longest local training.  Where local CNNs were trained together none was timed
    alone: their seconds are then scaled by longest local / fused of `times`, the training-time table
    (`bench.training_time`), and are NaN where it lacks the decomposition.
    """
    import pandas as pd

    rows, found = [], list(found)
    shapes = {_images(r): r.provenance["image_shape"] for r in found if "image_shape" in r.provenance}
    for record in found:
        reached = record.frame().groupby("strategy", sort=False)["test_accuracy"].mean()
        history = _timed_alone(record, times, shapes.get(_images(record)))
        for strategy, value in reached.items():
            spent = {how: seconds(history, strategy, how == "parallel") for how in ("one machine", "parallel")}
            seed = record.parameters["seed"]
            same = {**point(record), "settings": record.settings, "seed": seed}
            if strategy == "global":  # the same network, whatever stands beside it
                options = [told for told in record.variant.split() if not told.startswith(("channel_parts", "samples"))]
                same |= {"grid": "1x1", "overlap": 0, "settings": "", "variant": " ".join(options)}
            rows.append({**same, "strategy": strategy, "test_accuracy": value, **spent})
    return pd.DataFrame(rows).drop_duplicates(ignore_index=True)


def pareto(costs: "pd.DataFrame", by: str = "one machine") -> "pd.DataFrame":
    """The rows that no other row beats both in seconds and in test accuracy, by seconds; means over seeds."""
    same = [column for column in (*POINT, "settings", "strategy") if column in costs]
    means = costs.dropna(subset=[by]).groupby(same, sort=False)[[by, "test_accuracy"]].mean().reset_index()
    ordered = means.sort_values([by, "test_accuracy"], ascending=[True, False])
    best = ordered["test_accuracy"].cummax()
    return ordered[ordered["test_accuracy"].gt(best.shift(fill_value=-1))]


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
        for strategy in scored(record):
            score = record.arrays[f"score/{strategy}"]
            each = [roc_auc_score(record.arrays["labels"], one) for one in np.atleast_2d(score)]
            accuracy = (np.atleast_2d(record.predicted(strategy)) == record.arrays["labels"]).mean()
            larger = np.bincount(record.arrays["labels"]).max() / len(record.arrays["labels"])
            figures = {"AUC": np.mean(each), "accuracy": accuracy, "larger class": larger}
            figures = {name: 100 * float(value) for name, value in figures.items()}
            rows.append({**point(record), "seed": record.parameters["seed"], "strategy": strategy, **figures})
    return pd.DataFrame(rows)


def coverage(found: Iterable[Record], planned: Iterable[Experiment]) -> "pd.DataFrame":
    """Each planned point: how many of its seeds are on record with all their strategies, or "not run"."""
    import pandas as pd

    there = {record.name: record for record in found}
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for asked in planned:
        shown = Record(asked.parameters, [], {})
        row = rows.setdefault(tuple(point(shown).values()), {**point(shown), "seeds asked": 0, "on record": 0})
        row["seeds asked"] += 1
        row["on record"] += asked.name in there and {*asked.strategies} <= {*there[asked.name].strategies}
    frame = pd.DataFrame(rows.values())
    frame["state"] = np.where(
        frame["on record"] == 0, "not run", np.where(frame["on record"] < frame["seeds asked"], "partly", "complete")
    )
    return frame


def read(folders: str | Iterable[str | Path]) -> list[Record]:
    """All records below some folders, each once, by `POINT` and seed; relative folders lie below the project's root.

    Args:
        folders: written with spaces, or a list.

    Raises:
        FileNotFoundError: a folder that is not there.
        ValueError: two different records of the same parameters.
        files.DamagedFile: a record that is not what was written.
    """
    found: dict[str, Record] = {}
    for folder in map(resolve, folders.split() if isinstance(folders, str) else folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}.")
        ordered = sorted(records.load_all(folder), key=lambda r: (*point(r).values(), r.parameters["seed"]))
        for record in ordered:
            if found.setdefault(record.name, record).rows != record.rows:
                raise ValueError(f"two different records are called {record.name}; choose between their folders.")
    return list(found.values())


def training_times(path: str | Path) -> "pd.DataFrame":
    """The training-time table of 04_training_time, for `costs`; a relative path lies below the project's root.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column that lacks.
    """
    import pandas as pd

    file = _file(path)
    times = pd.read_csv(file)
    missing = [name for name in (*TIMED, "longest local", "fused") if name not in times]
    if missing:
        raise ValueError(f"{file} has no column {', '.join(missing)}: make it anew with 04_training_time.")
    return times


def _file(path: str | Path) -> Path:
    file = resolve(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}.")
    return file


def _images(record: Record) -> tuple[Any, ...]:
    """What settles the size of the images; early records do not have it, but others of the same images may."""
    return record.parameters["dataset"], record.parameters.get("options")


def _timed_alone(record: Record, times: "pd.DataFrame | None", image_shape: Sequence[int] | None) -> "pd.DataFrame":
    """The history; where local CNNs were trained together, with seconds alone as the training-time table has them."""
    history = record.history()
    if times is None or image_shape is None:
        return history
    alone = history["seconds_longest"] if "seconds_longest" in history else history["seconds"] * np.nan
    own: dict[str, Any] = dict(record.parameters) | {
        "images": "×".join(map(str, image_shape)),
        "grid": record.parameters["grid"].replace("x", "×"),
    }
    row = times[np.logical_and.reduce([times[name] == own[name] for name in TIMED])]
    share = (row["longest local"] / row["fused"]).mean()  # NaN where there is no such row
    together = history["stage"].str.startswith("local")
    return history.assign(seconds_longest=alone.where(alone.notna() | ~together, history["seconds"] * share))
