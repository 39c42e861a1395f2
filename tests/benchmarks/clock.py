"""The work of one worker by the clock: an epoch of one local CNN over one of the global CNN, as 10_what_pays has them.

    python tests/benchmarks/clock.py results/bench/clock  # about four minutes of one core

writes clock.csv and provenance.yaml: seconds for 1,000 random images in one thread, medians over repeats in turn, after
one to warm up, and their ratio, beside that of the operations.  A coarse window changes neither: it has a worker of its
own.
"""

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from ddlib._internal.files import writable_folder
from ddlib.cost.training_time import Setting, machine, save, training_time

QUARTER = [  # a data set, its images, and 2×2 windows that overlap by a quarter; without overlap they are timed too
    ("cifar10", Setting((32, 32), (2, 2), 4, width=32, images=768)),
    ("tf_flowers", Setting((64, 64), (2, 2), 8, width=16, images=384, batch_size=64)),
    ("tf_flowers", Setting((160, 160), (2, 2), 20, width=16, images=128, batch_size=64)),
    ("faces", Setting((48, 42), (2, 2), 5, width=16, channels=1, images=768, batch_size=64)),
    ("lidc_nodules", Setting((32, 32, 16), (2, 2, 1), 4, "cnn3d", 16, channels=1, images=128, batch_size=32)),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the table")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    folder = writable_folder(given.output)
    torch.set_num_threads(1)
    facts = machine()
    rows = []
    for name, setting in QUARTER:
        for overlap, width in product((0, setting.overlap), ("proportional", "full")):
            rows.append((name, replace(setting, overlap=overlap, local_width=width)))
        rows.append((name, replace(setting, overlap=0, width=setting.width // 2)))  # for its global CNN
    table = training_time([setting for _, setting in rows], given.repeats)
    table.insert(0, "data set", [name for name, _ in rows])
    table.insert(1, "local width", [setting.local_width for _, setting in rows])
    table["work, operations"] = 1 / table["operations, global / local"]
    table["work, clock"] = 1 / table["parallel speed-up"]
    save(folder, facts | {"repeats": given.repeats}, clock=table.round(4))


if __name__ == "__main__":
    main()
