"""Decomposition, or only several networks?  N local CNNs on windows against N small global CNNs on whole images.

    python tests/benchmarks/ensembles.py results/what_pays --seeds 0 1 2

writes ensemble.csv, a row a model and seed, and ensemble_table.csv, means over seeds.  The decomposed models are those
on record in results/what_pays.  The members of an ensemble are global CNNs, each with its own initial weights, batches
and augmentation (local CNNs share the latter two); their probabilities are averaged.  They have the width w / sqrt(N),
about the operations of the global CNN together; with --equal also that which is nearest to those of all local CNNs.
Trained members are kept in runs/ensembles: a run that was stopped goes on.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from ddlib import Experiment, ImageSet, LocalCNNs, average_probability, backbones, predict
from ddlib._internal.files import writable_folder, write_atomically
from ddlib.cost.training_time import operations
from ddlib.report import tables
from ddlib.strategies import STRATEGIES
from ddlib.study.parameters import resolve
from ddlib.study.records import Record

SETS, MEMBERS = {"faces": 12, "lidc_nodules": 20, "tf_flowers": 12}, 4  # epochs; the global CNN also had twice as many
SHOWN = ("global", "average", "cnn-dnn", "correction", "transfer")
POINT = ["data set", "model", "width", "epochs", "work"]  # width of a network, operations over those of the global CNN


def works(e: Experiment, data: ImageSet) -> tuple[int, float, dict[int, float]]:
    """Width of a local CNN; operations over those of the global CNN: of all local CNNs, and of an ensemble by width."""
    size, image = {"in_channels": data.channels, "num_classes": data.num_classes}, (data.channels, *data.image_shape)
    build = lambda width: backbones.build(e.backbone, **size, width=width, dims=len(data.image_shape))  # noqa: E731
    alone = {width: operations(build(width), *image) for width in range(1, e.width + 1)}
    rule = e.local_width or "proportional"
    local = LocalCNNs(e.backbone, e.decomposition(data), **size, width=e.width, local_width=rule)
    of_width = {width: MEMBERS * one / alone[e.width] for width, one in alone.items()}
    return local.local_width, operations(local, *image) / alone[e.width], of_width


def row(e: Experiment, model: str, width: int, work: float, seen: tuple[Any, Any, Any]) -> dict[str, Any]:
    """Of predicted classes, scores of the second of two, and labels: accuracy and area under the ROC curve, in %."""
    predicted, score, labels = map(np.asarray, seen)
    place = dict(zip(POINT, (e.dataset, model, width, e.epochs, round(work, 3)), strict=True))
    area = 100 * roc_auc_score(labels, score) if score.ndim else np.nan
    return place | {"seed": e.seed, "accuracy": 100 * (predicted == labels).mean(), "AUC": area}


def recorded(record: Record, e: Experiment, data: ImageSet) -> list[dict[str, Any]]:
    """A row a strategy: the global CNN, and what the local CNNs make up."""
    rows, times, (width, once, _) = [], e.epochs / SETS[e.dataset], works(e, data)
    for name in [name for name in SHOWN if name in record.strategies]:
        seen = record.predicted(name), record.arrays.get(f"score/{name}"), record.arrays["labels"]
        twice = 1 + STRATEGIES[name].trained_twice
        rows.append(row(e, name, *((e.width, times) if name == "global" else (width, times * twice * once)), seen))
    return rows


def ensemble(e: Experiment, data: ImageSet, width: int, folder: Path) -> dict[str, Any]:
    """A row: N global CNNs, each trained from a seed of its own, and their average probability."""
    said = []
    for seed in range(MEMBERS * e.seed, MEMBERS * (e.seed + 1)):
        member = replace(e, width=width, local_width=None, seed=seed)
        said.append(predict(member.model("global", folder, progress=False), data.test, precision=e.precision))
    p = average_probability(torch.stack(said, 1))
    score = p[:, 1] if data.num_classes == 2 else None
    return row(e, "ensemble", width, works(e, data)[2][width], (p.argmax(1), score, data.test.labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--equal", action="store_true", help="ensembles with the operations of the local CNNs, too")
    given = parser.parse_args()
    folder, output, rows, asked = writable_folder(resolve("runs/ensembles")), writable_folder(given.output), [], []
    for record in tables.read("results/what_pays"):
        e = Experiment(**record.parameters, strategies=record.strategies)
        if e.dataset not in SETS or e.seed not in given.seeds or e.coarse:
            continue
        data = e.data()
        rows += recorded(record, e, data)
        if e.epochs == SETS[e.dataset]:
            _, work, of_width = works(e, data)
            equal = min(of_width, key=lambda width: abs(of_width[width] - work))
            asked += [(k, width, e, data) for k, width in enumerate([round(e.width / MEMBERS**0.5), equal])]
    for k, width, e, data in sorted(asked, key=lambda item: item[0]):
        if k and not given.equal:
            break
        rows.append(ensemble(e, data, width, folder))
        print(rows[-1], flush=True)
        table = pd.DataFrame(rows).drop_duplicates([*POINT, "seed"])
        write_atomically(output / "ensemble.csv", table.round(3).to_csv(index=False))
        means = table.groupby(POINT)[["accuracy", "AUC"]].mean().assign(seeds=table.groupby(POINT).size())
        write_atomically(output / "ensemble_table.csv", means.round(2).to_csv())


if __name__ == "__main__":
    main()
