"""What the records say as a whole: tables, verdicts on the papers' claims, and what was not run.

Everything is drawn from records; nothing here trains.
"""

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checks, files, records
from .evaluation import accuracy_table, paired_test, verdict
from .experiment import Experiment
from .records import Record
from .stages import STRATEGIES, seconds

if TYPE_CHECKING:
    import pandas as pd

# the committed records of real data; `results/quick` and `results/precision` have points of the same names
FOLDERS = (
    *("results/cifar10", "results/cifar10_resnet20", "results/flowers", "results/nodules", "results/adrenal"),
    *("results/faces", "results/channels"),
)
# claim → what it says, and the comparisons (a, b) of strategies on which "a is more accurate than b" is judged
CLAIMS: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "C1": ("CNN-DNN beats average and vote (P1)", (("cnn-dnn", "average"), ("cnn-dnn", "vote"))),
    "C2": ("transfer beats the CNN-DNN (P1)", (("transfer", "cnn-dnn"),)),
    "C3": ("coherent from scratch beats the CNN-DNN; depends on the backbone (P1)", (("coherent", "cnn-dnn"),)),
    "C5": ("beats the global CNN here; P2 says that the CNN-DNN can", (("cnn-dnn", "global"), ("transfer", "global"))),
    "C6": ("composed and trained on beats random weights (E epochs) (P3)", (("channels", "global"),)),
}
# what is trained twice, for E + E epochs, against 2·E epochs of another: the same claims at equal total epochs
BUDGET: dict[str, tuple[tuple[str, str], ...]] = {
    "C2": (("transfer", "cnn-dnn"), ("transfer", "coherent")),
    "C5": (("transfer", "global"),),
    "C6": (("channels", "global"),),
}
# option of `Experiment` → the strategies that it is to improve
REMEDIES = {"out_of_fold": ("cnn-dnn", "transfer"), "local_losses": ("coherent", "transfer")}
PUBLISHED = ("dataset", "backbone", "grid", "overlap", "strategy", "test_accuracy", "source")  # of the reader's file
TIMED = ("images", "grid", "overlap", "backbone", "width")  # what identifies a row of the training-time table
POINT = ("dataset", "backbone", "width", "grid", "overlap", "epochs", "variant")  # one row of a table
JUDGED = ("claim", "what", *POINT, "a", "b", "epochs of b", "n", "difference", "low", "high", "p", "verdict", "McNemar")


def points(found: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by `Record.settings`, that is by all their parameters but the seed; every seed once."""
    groups: dict[str, dict[int, Record]] = {}
    for record in found:
        groups.setdefault(record.settings, {})[record.parameters["seed"]] = record
    return {settings: list(seeds.values()) for settings, seeds in groups.items()}


def claims(found: Sequence[Record]) -> "pd.DataFrame":
    """The verdict on each claim for each point that has both strategies; differences in points of test accuracy.

    Points with an option of `REMEDIES` are not the papers' and are left out.  Columns: claim, what, `POINT`, a, b,
    epochs of b, n seeds, difference and its 95 % interval (low, high), p and verdict (`evaluation.verdict`; on a
    part of the training images, "undecided (subset)"), and McNemar, the largest p over the seeds of that test on
    the same test images, 1 where the seeds differ in sign.
    """
    import pandas as pd

    rows, groups = [], points(_plain(found)).values()
    for claim, (what, comparisons) in CLAIMS.items():
        for some in groups:
            for a, b in comparisons:
                both = [(record, record) for record in some if {a, b} <= set(record.strategies)]
                if both:
                    rows.append({"claim": claim, "what": what, **_compare(both, a, b)})
    return pd.DataFrame(rows, columns=[*JUDGED])


def equal_budget(found: Sequence[Record]) -> "pd.DataFrame":
    """The claims of `BUDGET` at equal total epochs: a after E + E epochs against b after 2·E.

    Pairs of records that differ in `epochs` alone, by a factor of two; columns as in `claims`.
    """
    import pandas as pd

    rows = []
    for pairs in _twins(_plain(found), lambda parameters: {**parameters, "epochs": 2 * parameters["epochs"]}):
        for claim, comparisons in BUDGET.items():
            for a, b in comparisons:
                both = [(one, two) for one, two in pairs if a in one.strategies and b in two.strategies]
                if both:
                    what = f"{a} (E + E epochs) beats {b} (2·E epochs)"
                    rows.append({"claim": claim, "what": what, **_compare(both, a, b)})
    return pd.DataFrame(rows, columns=[*JUDGED])


def remedies(found: Sequence[Record]) -> "pd.DataFrame":
    """What the options of `REMEDIES` change: a strategy with the option against the same without; as in `claims`."""
    import pandas as pd

    rows = []
    for option, strategies in REMEDIES.items():

        def without(parameters: dict[str, Any], option: str = option) -> dict[str, Any] | None:
            return {k: v for k, v in parameters.items() if k != option} if option in parameters else None

        for pairs in _twins(found, without):
            for strategy in strategies:
                both = [pair for pair in pairs if all(strategy in record.strategies for record in pair)]
                if both:
                    what = f"{option} makes {strategy} more accurate"
                    rows.append({"claim": "remedy", "what": what, **_compare(both, strategy, strategy)})
    return pd.DataFrame(rows, columns=[*JUDGED])


def adjusted(judged: "pd.DataFrame") -> "pd.DataFrame":
    """Verdicts that allow for the number of comparisons: rows of `claims`, `equal_budget`, `remedies`, with adjusted p.

    The family is a claim: of its rows that hold or do not hold, at most 5 % are expected to be false, where the rows
    are independent or positively dependent (Benjamini and Hochberg 1995).  A row whose adjusted p is larger becomes
    undecided.  Intervals stay those of each row by itself.
    """
    from scipy.stats import false_discovery_control

    counted = judged[judged["p"].notna() & ~judged["verdict"].str.contains("subset")]
    result = judged.assign(**{"adjusted p": np.nan})
    for _, family in counted.groupby("claim"):
        result.loc[family.index, "adjusted p"] = false_discovery_control(family["p"].to_numpy(float))
    result.loc[result["adjusted p"] > 0.05, "verdict"] = "undecided"
    return result


def published(path: str | Path, frame: "pd.DataFrame") -> "pd.DataFrame":
    """Accuracies that a reader copied from the papers, beside ours (`frame`, of `gather`).

    The file is a CSV with the columns dataset, backbone, grid, overlap, strategy, test_accuracy (in %) and source;
    lines that start with # are comments; a relative path lies below the project's root.  Ours is mean ± standard
    deviation over seeds (n): a row for each width, number of epochs and variant, one with "not run" where there is
    none.  The global CNN's grid and overlap do not matter.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column that lacks, or a value that is not allowed, with its row.
    """
    import pandas as pd

    file = _file(path)
    text = [line for line in file.read_text().splitlines() if line.strip() and line[0] != "#"]
    head, *lines = list(csv.reader(text)) or [[]]
    if head != list(PUBLISHED):
        raise ValueError(f"{file.name} must have the columns {', '.join(PUBLISHED)}, got {', '.join(head)}.")
    table = accuracy_table(frame).reset_index()
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
    checks.one_of("strategy", row["strategy"], STRATEGIES)
    for name in ("overlap", "test_accuracy"):
        try:
            row[name] = float(row[name])
        except ValueError:
            raise ValueError(f"{name} must be a number, got {row[name]!r}.") from None
    row["published, %"] = checks.real("test_accuracy", row.pop("test_accuracy"), 0, 100)
    point = Experiment(row["dataset"], row["backbone"], row["grid"], row["overlap"])
    return row | {"grid": point.grid, "overlap": point.overlap}


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

    rows = []
    for record in found:
        reached = record.frame().groupby("strategy", sort=False)["test_accuracy"].mean()
        history = _timed_alone(record, times)
        for strategy, value in reached.items():
            spent = {how: seconds(history, strategy, how == "parallel") for how in ("one machine", "parallel")}
            seed = record.parameters["seed"]
            same = {**_point(record), "settings": record.settings, "seed": seed}
            if strategy == "global":
                same |= {"grid": "1x1", "overlap": 0, "settings": ""}
            rows.append({**same, "strategy": strategy, "test_accuracy": value, **spent})
    return pd.DataFrame(rows).drop_duplicates(ignore_index=True)


def pareto(costs: "pd.DataFrame", by: str = "one machine") -> "pd.DataFrame":
    """The rows that no other row beats both in seconds and in test accuracy, by seconds; means over seeds."""
    same = [column for column in (*POINT, "settings", "strategy") if column in costs]
    means = costs.dropna(subset=[by]).groupby(same, sort=False)[[by, "test_accuracy"]].mean().reset_index()
    ordered = means.sort_values([by, "test_accuracy"], ascending=[True, False])
    best = ordered["test_accuracy"].cummax()
    return ordered[ordered["test_accuracy"].gt(best.shift(fill_value=-1))]


def scores(found: Iterable[Record]) -> "pd.DataFrame":
    """Area under the ROC curve, in %, of each strategy on data of two classes, beside its accuracy.

    `larger class` is the accuracy of always answering the more frequent class.
    """
    import pandas as pd
    from sklearn.metrics import roc_auc_score

    rows = []
    for record in found:
        for name, score in record.arrays.items():
            kind, _, strategy = name.partition("/")
            if kind == "score":
                each = [roc_auc_score(record.arrays["labels"], one) for one in np.atleast_2d(score)]
                accuracy = (np.atleast_2d(record.predicted(strategy)) == record.arrays["labels"]).mean()
                larger = np.bincount(record.arrays["labels"]).max() / len(record.arrays["labels"])
                figures = {"AUC": np.mean(each), "accuracy": accuracy, "larger class": larger}
                figures = {name: 100 * float(value) for name, value in figures.items()}
                rows.append({**_point(record), "seed": record.parameters["seed"], "strategy": strategy, **figures})
    return pd.DataFrame(rows)


def coverage(found: Iterable[Record], planned: Iterable[Experiment]) -> "pd.DataFrame":
    """Each planned point: how many of its seeds are on record with all their strategies, or "not run"."""
    import pandas as pd

    there = {record.name: record for record in found}
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for point in planned:
        shown = Record(point.parameters, [], {})
        row = rows.setdefault(tuple(_point(shown).values()), {**_point(shown), "seeds asked": 0, "on record": 0})
        row["seeds asked"] += 1
        row["on record"] += point.name in there and {*point.strategies} <= {*there[point.name].strategies}
    frame = pd.DataFrame(rows.values())
    frame["state"] = np.where(
        frame["on record"] == 0, "not run", np.where(frame["on record"] < frame["seeds asked"], "partly", "complete")
    )
    return frame


def read(folders: str | Iterable[str | Path]) -> list[Record]:
    """All records below some folders, each once; relative folders lie below the project's root.

    Args:
        folders: written with spaces, or a list.

    Raises:
        FileNotFoundError: a folder that is not there.
        ValueError: two different records of the same parameters.
        files.DamagedFile: a record that is not what was written.
    """
    found: dict[str, Record] = {}
    for folder in map(files.resolve, folders.split() if isinstance(folders, str) else folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}.")
        for record in records.load_all(folder):
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
    file = files.resolve(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}.")
    return file


def _point(record: Record) -> dict[str, Any]:
    return {**{name: record.parameters[name] for name in POINT[:-1]}, "variant": record.variant}


def _plain(found: Iterable[Record]) -> list[Record]:
    """Without those that have an option of `REMEDIES`."""
    return [record for record in found if not set(REMEDIES) & set(record.parameters)]


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


def _timed_alone(record: Record, times: "pd.DataFrame | None") -> "pd.DataFrame":
    """The history; where local CNNs were trained together, with seconds alone as the training-time table has them."""
    history = record.history()
    if times is None or "image_shape" not in record.provenance:
        return history
    alone = history["seconds_longest"] if "seconds_longest" in history else history["seconds"] * np.nan
    own: dict[str, Any] = dict(record.parameters) | {
        "images": "×".join(map(str, record.provenance["image_shape"])),
        "grid": record.parameters["grid"].replace("x", "×"),
    }
    row = times[np.logical_and.reduce([times[name] == own[name] for name in TIMED])]
    share = (row["longest local"] / row["fused"]).mean()  # NaN where there is no such row
    together = history["stage"].str.startswith("local")
    return history.assign(seconds_longest=alone.where(alone.notna() | ~together, history["seconds"] * share))


def _compare(pairs: Sequence[tuple[Record, Record]], a: str, b: str) -> dict[str, Any]:
    """Records of several seeds, with strategy a and b; mostly the same one twice."""
    tests = [
        paired_test(first.arrays["labels"], first.predicted(a).squeeze(), second.predicted(b).squeeze())
        for first, second in pairs
    ]
    differences = [100 * test.difference for test in tests]
    judged = verdict(differences, error=100 * sum(test.error for test in tests) / len(tests))
    subset = pairs[0][0].parameters.get("train_size") is not None
    return {
        **_point(pairs[0][0]),
        "a": a,
        "b": b,
        "epochs of b": pairs[0][1].parameters["epochs"],
        "n": judged.n,
        "difference": judged.mean,
        "low": judged.low,
        "high": judged.high,
        "p": judged.p_value,
        "verdict": "undecided (subset)" if subset else judged.word,
        "McNemar": max(test.p_value for test in tests) if len({np.sign(d) for d in differences}) == 1 else 1.0,
    }
