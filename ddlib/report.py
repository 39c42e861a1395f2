"""What the records say as a whole: tables, verdicts on the papers' claims, and what was not run.

Everything is drawn from records; nothing here trains.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import files, records
from .evaluation import paired_test, verdict
from .experiment import Experiment
from .records import Record
from .stages import seconds

if TYPE_CHECKING:
    import pandas as pd

# claim → what it says, and the comparisons (a, b) of strategies on which "a is more accurate than b" is judged
CLAIMS: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "C1": ("CNN-DNN beats average and vote (P1)", (("cnn-dnn", "average"), ("cnn-dnn", "vote"))),
    "C2": ("transfer beats the CNN-DNN (P1)", (("transfer", "cnn-dnn"),)),
    "C3": ("coherent from scratch beats the CNN-DNN; depends on the backbone (P1)", (("coherent", "cnn-dnn"),)),
    "C5": ("CNN-DNN can beat the global CNN (P2)", (("cnn-dnn", "global"),)),
    "C6": ("composed and trained on beats random weights (E epochs) (P3)", (("channels", "global"),)),
}
# what is trained twice, for E + E epochs, against 2·E epochs of another: the same claims at equal total epochs
BUDGET: dict[str, tuple[tuple[str, str], ...]] = {
    "C2": (("transfer", "cnn-dnn"), ("transfer", "coherent")),
    "C5": (("transfer", "global"),),
    "C6": (("channels", "global"),),
}
POINT = ("dataset", "backbone", "width", "grid", "overlap", "epochs", "variant")  # one row of a table


def points(found: Iterable[Record]) -> dict[str, list[Record]]:
    """Records by `Record.settings`, that is by all their parameters but the seed; every seed once."""
    groups: dict[str, dict[int, Record]] = {}
    for record in found:
        groups.setdefault(record.settings, {})[record.parameters["seed"]] = record
    return {settings: list(seeds.values()) for settings, seeds in groups.items()}


def claims(found: Sequence[Record]) -> "pd.DataFrame":
    """The verdict on each claim for each point that has both strategies; differences in points of test accuracy.

    Columns: claim, what, `POINT`, a, b, n seeds, difference and its 95 % interval (low, high), verdict
    (`evaluation.verdict`; on a part of the training images, "undecided (subset)"), and p, the largest over the seeds
    of McNemar's test on the same test images, 1 where the seeds differ in sign.
    """
    import pandas as pd

    rows = []
    for claim, (what, comparisons) in CLAIMS.items():
        for some in points(found).values():
            for a, b in comparisons:
                both = [(record, record) for record in some if {a, b} <= set(record.strategies)]
                if both:
                    rows.append({"claim": claim, "what": what, **_compare(both, a, b)})
    return pd.DataFrame(rows)


def equal_budget(found: Sequence[Record]) -> "pd.DataFrame":
    """The claims of `BUDGET` at equal total epochs: a after E + E epochs against b after 2·E.

    Pairs of records that differ in `epochs` alone, by a factor of two; columns as in `claims`.
    """
    import pandas as pd

    known = {record.name: record for record in found}
    rows = []
    for some in points(found).values():
        twice = [
            (record, known[name])
            for record in some
            if (name := records.record_name({**record.parameters, "epochs": 2 * record.parameters["epochs"]})) in known
        ]
        for claim, comparisons in BUDGET.items():
            for a, b in comparisons:
                both = [(one, two) for one, two in twice if a in one.strategies and b in two.strategies]
                if both:
                    what = f"{a} (E + E epochs) beats {b} (2·E epochs)"
                    rows.append({"claim": claim, "what": what, **_compare(both, a, b)})
    return pd.DataFrame(rows)


def alike(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Of the rows of `gather`, those at the most frequent width, number of epochs and variant: what a plot can join."""
    kind = frame[["width", "epochs", "variant"]].astype(str).agg("/".join, axis=1)
    return frame[kind == kind.mode().iloc[0]] if len(frame) else frame


def costs(found: Iterable[Record]) -> "pd.DataFrame":
    """Test accuracy and seconds of training of every strategy: on one machine, and with a worker for each network.

    The latter (`parallel`) is NaN where local CNNs were trained together, since none was timed alone.
    """
    import pandas as pd

    rows = []
    for record in found:
        reached = record.frame().groupby("strategy", sort=False)["test_accuracy"].mean()
        history = record.history()
        for strategy, value in reached.items():
            spent = {how: seconds(history, strategy, how == "parallel") for how in ("one machine", "parallel")}
            seed = record.parameters["seed"]
            same = {**_point(record), "settings": record.settings, "seed": seed}
            rows.append({**same, "strategy": strategy, "test_accuracy": value, **spent})
    return pd.DataFrame(rows)


def pareto(costs: "pd.DataFrame", by: str = "one machine") -> "pd.DataFrame":
    """The rows that no other row beats both in seconds and in test accuracy, by seconds; means over seeds."""
    same = [column for column in (*POINT, "settings", "strategy") if column in costs]
    means = costs.dropna(subset=[by]).groupby(same, sort=False)[[by, "test_accuracy"]].mean().reset_index()
    ordered = means.sort_values([by, "test_accuracy"], ascending=[True, False])
    best = ordered["test_accuracy"].cummax()
    return ordered[ordered["test_accuracy"].gt(best.shift(fill_value=-1))]


def scores(found: Iterable[Record]) -> "pd.DataFrame":
    """Area under the ROC curve, in %, of each strategy on data of two classes, beside its accuracy."""
    import pandas as pd
    from sklearn.metrics import roc_auc_score

    rows = []
    for record in found:
        for name, score in record.arrays.items():
            kind, _, strategy = name.partition("/")
            if kind == "score":
                each = [roc_auc_score(record.arrays["labels"], one) for one in np.atleast_2d(score)]
                accuracy = (np.atleast_2d(record.predicted(strategy)) == record.arrays["labels"]).mean()
                figures = {"AUC": 100 * float(np.mean(each)), "accuracy": 100 * float(accuracy)}
                rows.append({**_point(record), "seed": record.parameters["seed"], "strategy": strategy, **figures})
    return pd.DataFrame(rows)


def coverage(found: Iterable[Record], planned: Iterable[Experiment]) -> "pd.DataFrame":
    """Each planned point: how many of its seeds are on record (by what determines the figures), or "not run"."""
    import pandas as pd

    there = {record.name: record for record in found}
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for point in planned:
        shown = Record(point.parameters, [], {})
        row = rows.setdefault(tuple(_point(shown).values()), {**_point(shown), "seeds asked": 0, "on record": 0})
        row["seeds asked"] += 1
        row["on record"] += point.name in there
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


def _point(record: Record) -> dict[str, Any]:
    return {**{name: record.parameters[name] for name in POINT[:-1]}, "variant": record.variant}


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
        "n": judged.n,
        "difference": judged.mean,
        "low": judged.low,
        "high": judged.high,
        "verdict": "undecided (subset)" if subset else judged.word,
        "p": max(test.p_value for test in tests) if len({np.sign(d) for d in differences}) == 1 else 1.0,
    }
