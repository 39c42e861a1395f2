"""Image sets larger than memory: what reading a folder takes, and how fast training from files is.

    python tests/benchmarks/memory.py results/bench/memory

writes reading.csv, by the system's own count of the memory that is the process's alone (RssAnon), training.csv and
provenance.yaml.  The folder of photos is made up, below the output's `photos`, and deleted.
"""

import argparse
import re
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ddlib import Split, files, fit, load_dataset
from ddlib.cost.training_time import Setting, compare, machine, save

WAYS = {"memory": float("inf"), "files": 0.0}  # way → `files.SHARE`


def own() -> float:
    """GiB of memory that are this process's alone."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20


def peak(task: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of a task, and the most memory that it took, in GiB."""
    before, most, done = own(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], own() - before)

    watcher, start = threading.Thread(target=watch), time.perf_counter()
    watcher.start()
    task()
    done.set()
    watcher.join()
    return time.perf_counter() - start, most[0]


def make(folder: Path, count: int, size: int) -> None:
    """Photos of two classes, smooth as photos are."""
    generator = np.random.default_rng(0)
    for k in range(count):
        path = folder / f"class {k % 2}" / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(small).resize((size, size)).save(path)


def reading(root: Path, count: int, size: int) -> pd.DataFrame:
    """A row a way and reading: seconds, the most memory in GiB, and the images' own size."""
    make(root / "photos", count, size)
    rows = []
    for way, files.SHARE in WAYS.items():
        shutil.rmtree(root / ".cache", ignore_errors=True)
        for what in ("first", "from the cache"):
            task = partial(load_dataset, "image_folder", root=root, path="photos", size=size)
            seconds, memory = peak(task)
            rows.append({"way": way, "reading": what, "seconds": seconds, "GiB": memory})
    return pd.DataFrame(rows).assign(images=f"{count} of {size}×{size}", size=count * 3 * size**2 / 2**30)


def training(root: Path, count: int, whole: int) -> pd.DataFrame:
    """A row a way: images/s of an epoch, in turn after a warm-up, the ratio to memory, and the most memory in GiB.

    In files it is the first part of a set of `whole` images.
    """
    s = Setting((64, 64), (2, 2), width=16, images=count)
    data, tasks = s.data(), {}
    for way, files.SHARE in WAYS.items():
        images = files.room((count if way == "memory" else whole, *data.images.shape[1:]), root)[:count]
        images.copy_(data.images)
        split = Split(images, data.labels, data.mean, data.std, data.flip_axes)
        tasks[way] = partial(fit, s.network(), split, s.recipe(), progress=False)
    taken = compare(tasks)
    rows = []
    for way, task in tasks.items():
        per_second, memory = count / taken[way], peak(task)[1]
        rows.append({"way": way, "images/s": per_second, "ratio": taken["memory"] / taken[way], "GiB": memory})
    size = f"{count} of 3×64×64" + ", of {}"
    return pd.DataFrame(rows).assign(images=[size.format(n) for n in (count, whole)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the tables")
    parser.add_argument("--photos", type=int, default=3000, help="how many (default 3000)")
    parser.add_argument("--size", type=int, default=512, help="pixels of their sides (default 512)")
    parser.add_argument("--images", type=int, default=4096, help="of an epoch (default 4096)")
    parser.add_argument("--whole", type=int, default=700_000, help="images of the set in files (default 700000)")
    given = parser.parse_args()
    root = files.writable_folder(given.output / "photos")
    try:
        tables = {
            "reading": reading(root, given.photos, given.size),
            "training": training(root, given.images, given.whole),
        }
    finally:
        shutil.rmtree(root)
    for table in tables.values():
        print(table.to_string(index=False, float_format="{:.3g}".format))
    save(given.output, machine(), **tables)


if __name__ == "__main__":
    main()
