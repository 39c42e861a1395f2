"""Where do the curves flatten?  Accuracy on a validation split of the training images, for half to twice the epochs.

    python tests/benchmarks/epochs.py results/epochs

A tenth of the training images is held out in place of the test images, which are not seen.  The points are some of
`notebooks/plans/cpu.yaml`, with their first seed; a run that was stopped goes on.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import ddlib
from ddlib._internal.files import write_atomically
from ddlib.data.readers import Halves
from ddlib.data.sets import DATASETS
from ddlib.study import sweep

PLAN = Path(__file__).resolve().parents[2] / "notebooks" / "plans" / "cpu.yaml"
POINTS = [  # data set, backbone, grid
    ("lidc_nodules", "cnn3d", "2x2x1"),
    ("lidc_nodules", "cnn3d", "4x4x1"),
    ("tf_flowers", "vgg9", "2x2"),
    ("tf_flowers", "vgg9", "4x4"),
    ("cifar10", "vgg9", "4x4"),
]
STRATEGIES = ("local", "average", "cnn-dnn", "transfer")


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the table and the records")
    folder, planned = parser.parse_args().output, [point.experiment for point in sweep.read_plan(PLAN)]
    tables = []
    for dataset, backbone, grid in POINTS:
        usual = next(e for e in planned if (e.dataset, e.backbone, e.grid) == (dataset, backbone, grid))
        for epochs in (usual.epochs // 2, usual.epochs, 2 * usual.epochs):
            held_out = replace(usual, dataset=with_validation(dataset), epochs=epochs, strategies=STRATEGIES)
            tables.append(held_out.run(folder / "records", progress=False))
            table = ddlib.accuracy_table(pd.concat(tables)).rename(columns=lambda strategy: f"{strategy}, %")
            write_atomically(folder / "epochs.csv", table.to_csv())
            print(table.iloc[[-1]].to_string(), flush=True)
