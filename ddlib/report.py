"""What the records say as a whole: tables, verdicts on the papers' claims, and what was not run.

Everything is drawn from records; nothing here trains.
"""

from collections.abc import Iterable, Sequence
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
    "C5": ("CNN-DNN can beat the global CNN (P2)", (("cnn-dnn", "global"), ("transfer", "global"))),
    "C6": (
        "the composed network, trained further, beats random weights at equal epochs (P3)",
        (("channels", "global"),),
    ),
}
POINT = ("dataset", "backbone", "width", "grid", "overlap", "epochs", "variant")  # one row of a table


def points(found: Iterable[Record]) -> dict[tuple[Any, ...], list[Record]]:
    """Records by what they have in common but the seed: `POINT`, and whatever else their parameters name."""
    groups: dict[str, list[Record]] = {}
    for record in found:
        same = {name: value for name, value in record.parameters.items() if name != "seed"}
        groups.setdefault(records.key(same), []).append(record)
    return {tuple(_point(some[0]).values()): some for some in groups.values()}


def claims(found: Sequence[Record]) -> "pd.DataFrame":
    """The verdict on each claim for each point that has both strategies; differences in points of test accuracy.

    Columns: claim, what, `POINT`, a, b, n seeds, difference and its 95 % interval over the seeds (low, high), verdict
    (`evaluation.verdict`), and p, the largest over the seeds of McNemar's test on the same test images.
    """
    import pandas as pd

    rows = []
    for claim, (what, comparisons) in CLAIMS.items():
        for point, some in points(found).items():
            for a, b in comparisons:
                both = [record for record in some if {a, b} <= set(record.strategies)]
                if both:
                    rows.append(
                        {"claim": claim, "what": what, **dict(zip(POINT, point, strict=True))} | _compare(both, a, b)
                    )
    return pd.DataFrame(rows)


def equal_budget(found: Sequence[Record]) -> "pd.DataFrame":
    """C2 at equal total epochs: transfer after E + E epochs against CNN-DNN and coherent model after 2·E.

    Pairs of points that differ in `epochs` alone, by a factor of two; columns as in `claims`.
    """
    import pandas as pd

    rows = []
    grouped = points(found)
    place = POINT.index("epochs")
    for point, some in grouped.items():
        longer = grouped.get((*point[:place], 2 * point[place], *point[place + 1 :]), [])
        twice = {record.parameters["seed"]: record for record in longer}
        for b in ("cnn-dnn", "coherent"):
            pairs = [
                (record, twice[record.parameters["seed"]])
                for record in some
                if record.parameters["seed"] in twice
                and "transfer" in record.strategies
                and b in twice[record.parameters["seed"]].strategies
            ]
            if pairs:
                row = {"claim": "C2", "what": f"transfer (E + E epochs) beats {b} (2·E epochs)"}
                rows.append(row | dict(zip(POINT, point, strict=True)) | _compare(pairs, "transfer", b))
    return pd.DataFrame(rows)


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
            rows.append({**_point(record), "seed": seed, "strategy": strategy, "test_accuracy": value, **spent})
    return pd.DataFrame(rows)


def pareto(costs: "pd.DataFrame", by: str = "one machine") -> "pd.DataFrame":
    """The rows that no other row beats both in seconds and in test accuracy, by seconds."""
    ordered = costs.dropna(subset=[by]).sort_values([by, "test_accuracy"], ascending=[True, False])
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


def read(folders: str) -> list[Record]:
    """All records below some folders, written with spaces; relative ones lie below the project's root.

    Raises:
        FileNotFoundError: a folder that is not there.
        files.DamagedFile: a record that is not what was written.
    """
    found = []
    for folder in map(files.resolve, folders.split()):
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}.")
        found += records.load_all(folder)
    return found


def _point(record: Record) -> dict[str, Any]:
    return {**{name: record.parameters[name] for name in POINT[:-1]}, "variant": record.variant}


def _compare(found: Sequence[Any], a: str, b: str) -> dict[str, Any]:
    """Records, or pairs of them (a's, b's), of several seeds."""
    pairs = [one if isinstance(one, tuple) else (one, one) for one in found]
    tests = [
        paired_test(first.arrays["labels"], first.predicted(a).squeeze(), second.predicted(b).squeeze())
        for first, second in pairs
    ]
    judged = verdict([100 * test.difference for test in tests])
    return {
        "a": a,
        "b": b,
        "n": judged.n,
        "difference": judged.mean,
        "low": judged.low,
        "high": judged.high,
        "verdict": judged.word,
        "p": max(test.p_value for test in tests),
    }
