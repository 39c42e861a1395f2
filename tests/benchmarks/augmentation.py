"""What is it worth to augment whole images before they are cut, and not each window by itself?

    python tests/benchmarks/augmentation.py results/augmentation

writes augmentation.csv and provenance.yaml: accuracies in % of CIFAR-10 cut to 4×4, VGG9 of width 32, 10,000 training
images, 12 epochs.  An image that is mirrored and shifted before it is cut shows a left window the mirrored right half,
and pixels of its neighbours; a window that is mirrored and shifted after the cut shows its own pixels alone.  All runs
of a seed have the same images and initial weights.  The table is written after every run.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

import ddlib
from ddlib.cost.training_time import machine, save
from ddlib.images import augment

SHAPE, GRID, STRATEGIES = (32, 32), (4, 4), ("local", "average", "vote", "cnn-dnn")
WINDOWS = ddlib.Decomposition.grid(SHAPE, GRID)


def windows_moved(images: Tensor, generator: torch.Generator, reach: float = 1 / 8) -> Tensor:
    """Each window mirrored and shifted by itself, by up to `reach` of its 8 pixels: (B, C, 32, 32) uint8."""
    moved = torch.empty_like(images)
    for window in WINDOWS.windows:  # they tile the image, so that what is cut of it is what was moved
        moved[(..., *window)] = augment(images[(..., *window)], (1,), generator, reach)
    return moved


def windows_moved_far(images: Tensor, generator: torch.Generator) -> Tensor:
    """The same by up to 4 pixels, as many as whole images are shifted."""
    return windows_moved(images, generator, 1 / 2)


WAYS = {"whole images": True, "windows, 1 pixel": windows_moved, "windows, 4 pixels": windows_moved_far, "none": False}


def run(data: ddlib.ImageSet, seed: int, way: str, epochs: int) -> list[dict[str, object]]:
    """A row a strategy: mean accuracies of one way and seed."""
    recipes = {
        name: replace(recipe, seed=seed, augment=WAYS[way], epochs=epochs) if name == "local" else recipe
        for name, recipe in ddlib.RECIPES.items()
    }
    recipes["dense network"] = replace(recipes["dense network"], seed=seed)
    trained = ddlib.Trainings("vgg9", WINDOWS, data, width=32, recipes=recipes, seed=seed)
    rows = []
    for strategy in STRATEGIES:
        row: dict[str, object] = {"augmented": way, "seed": seed, "strategy": strategy}
        for half, split in (("train", data.train), ("test", data.test)):
            found = torch.as_tensor(ddlib.accuracy(trained.probabilities(strategy, half), split.labels))
            row[f"{half}, %"] = 100 * float(found.double().mean())
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the table")
    parser.add_argument("--images", type=int, default=10_000, help="of the training images (default 10000)")
    parser.add_argument("--epochs", type=int, default=12, help="of the local CNNs (default 12)")
    parser.add_argument("--seeds", type=int, default=3, help="0 to this one less (default 3)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="default: all")
    given = parser.parse_args()
    made, whole, rows = machine(), ddlib.load_dataset("cifar10"), []
    for seed in range(given.seeds):
        data = whole.few(given.images, seed)
        for way in given.ways:
            rows += run(data, seed, way, given.epochs)
            table = pd.DataFrame(rows).assign(images=given.images, epochs=given.epochs)
            save(given.output, made, augmentation=table)
            print(table.tail(len(STRATEGIES)).to_string(index=False, header=way == given.ways[0]), flush=True)


if __name__ == "__main__":
    main()
