"""Where do the curves flatten?  Accuracy on a validation split of the training images, for half to twice the epochs.

    python tests/bench_epochs.py results/epochs

A tenth of the training images is held out in place of the test images, which are not seen.  The points are the first
seeds of `notebooks/plans/cpu.yaml`; a run that was stopped goes on.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import ddlib
from ddlib.datasets import DATASETS
from ddlib.files import write_atomically
from ddlib.readers import Halves

NODULES = {"dataset": "lidc_nodules", "backbone": "cnn3d", "width": 16, "batch_size": 32}
FLOWERS = {"dataset": "tf_flowers", "options": "size=64", "width": 16, "batch_size": 64}
POINTS: list[dict[str, Any]] = [
    *({**NODULES, "grid": grid, "epochs": epochs} for grid in ("2x2x1", "4x4x1") for epochs in (10, 20, 40)),
    *({**FLOWERS, "grid": grid, "epochs": epochs} for grid in ("2x2", "4x4") for epochs in (6, 12, 24)),
    *({"dataset": "cifar10", "grid": "4x4", "width": 32, "epochs": epochs} for epochs in (6, 12, 24)),
]


def with_validation(name: str) -> str:
    """Registers a data set whose test images are every tenth of the training images, drawn at random."""
    entry = DATASETS[name]

    def read(*place: Any, **options: Any) -> Halves:
        (images, labels), _, classes = entry.read(*place, **options)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        held, kept = order[::10], order[torch.arange(len(order)) % 10 > 0]
        return (images[kept], labels[kept]), (images[held], labels[held]), classes

    DATASETS[f"{name}, validation"] = replace(entry, read=read)
    return f"{name}, validation"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    strategies = ("local", "average", "cnn-dnn", "transfer")
    tables = []
    for point in POINTS:
        experiment = ddlib.Experiment(**point | {"dataset": with_validation(point["dataset"])}, strategies=strategies)
        tables.append(experiment.run(folder / "records", progress=False))
        table = ddlib.accuracy_table(pd.concat(tables)).rename(columns=lambda strategy: f"{strategy}, %")
        write_atomically(folder / "epochs.csv", table.to_csv())
        print(table.iloc[[-1]].to_string(), flush=True)
