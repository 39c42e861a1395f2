"""Executors of every kind: seconds of local training on two workers, bytes that a task carries, and the loop's weights.

    python tests/benchmarks/executors.py results/bench/executors
    mpiexec -n 3 python -m mpi4py.futures tests/benchmarks/executors.py results/bench/executors/mpi  # MPI alone

writes executors.csv, medians over repeats in turn after a warm-up, and provenance.yaml.  loky and Dask are timed where
they are installed.
"""

import argparse
import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ddlib import Decomposition, ImageSet, LocalCNNs, Recipe, load_dataset, train_local
from ddlib.cost.training_time import compare, machine, save
from ddlib.study.sweep import dask_executor

WORKERS = 2


class Counting(Executor):
    """Hands tasks on, and counts their bytes as that executor would pickle them."""

    def __init__(self, executor: Executor, dumps: Callable[[Any], bytes]):
        self.executor, self.dumps, self.bytes = executor, dumps, []

    def submit(self, task: Callable[..., Any], /, *arguments: Any) -> Future:
        self.bytes.append(len(self.dumps((task, *arguments))))
        return self.executor.submit(task, *arguments)


@contextmanager
def executors() -> Iterator[dict[str, tuple[Executor, Callable[[Any], bytes]]]]:
    """Name → an executor of two workers, and how it pickles; MPI's alone where this is a process of MPI."""
    with ExitStack() as stack:
        if "mpi4py.futures" in sys.modules:
            from mpi4py.futures import MPIPoolExecutor

            yield {"MPI": (stack.enter_context(MPIPoolExecutor()), pickle.dumps)}
            return
        processes = ProcessPoolExecutor(WORKERS, get_context("spawn"))
        found: dict[str, tuple[Executor, Callable[[Any], bytes]]] = {
            "threads": (stack.enter_context(ThreadPoolExecutor(WORKERS)), lambda _: b""),
            "processes": (stack.enter_context(processes), ForkingPickler.dumps),
        }
        if find_spec("loky"):
            import loky

            found["loky"] = stack.enter_context(loky.ProcessPoolExecutor(WORKERS)), pickle.dumps
        if find_spec("distributed"):
            found["Dask"] = stack.enter_context(dask_executor("local", WORKERS)), pickle.dumps
        yield found


def train(engine: str | Executor, data: ImageSet, by_name: bool, per_task: int, width: int, epochs: int) -> LocalCNNs:
    torch.manual_seed(0)
    dec = Decomposition.grid(data.image_shape, (2, 2))
    local = LocalCNNs("vgg9", dec, in_channels=data.channels, num_classes=data.num_classes, width=width)
    recipe = Recipe(epochs=epochs, batch_size=64, precision="fp32")
    train_local(local, data if by_name else data.train, recipe, engine=engine, per_task=per_task, progress=False)
    return local


def difference(a: LocalCNNs, b: LocalCNNs) -> float:
    """The largest one of any weight."""
    return max((p - q).abs().max().item() for p, q in zip(a.parameters(), b.parameters(), strict=True))


def table(width: int, epochs: int) -> pd.DataFrame:
    """A row an executor, way to get the images, and number of local CNNs a task."""
    data, rows, tasks = load_dataset("digits"), [], {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers
    given = {"data": data, "width": width, "epochs": epochs}
    loop = train("loop", by_name=False, per_task=1, **given)
    torch.set_num_threads(threads)
    for engine in ("loop", "fused"):
        tasks[engine, "", ""] = partial(train, engine, by_name=False, per_task=1, **given)
        rows.append([0, difference(tasks[engine, "", ""](), loop)])
    with executors() as found:
        for name, (executor, dumps) in found.items():
            for by_name, per_task in ((False, 1), (True, 1), (True, 2)):
                how = {"by_name": by_name, "per_task": per_task, **given}
                trained = train(counting := Counting(executor, dumps), **how)
                rows.append([max(counting.bytes), difference(trained, loop)])
                tasks[name, "by name" if by_name else "as tensors", per_task] = partial(train, executor, **how)
        taken = compare(tasks)
    frame = pd.DataFrame(tasks.keys(), columns=["executor", "images", "per_task"])
    frame[["bytes a task", "difference to the loop"]] = rows
    return frame.assign(seconds=taken.values(), ratio=[t / taken["loop", "", ""] for t in taken.values()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the tables")
    parser.add_argument("--width", type=int, default=16, help="of the global CNN (default 16)")
    parser.add_argument("--epochs", type=int, default=2, help="of each training (default 2)")
    given = parser.parse_args()
    frame = table(given.width, given.epochs)
    print(frame.to_string(index=False, float_format="{:.3g}".format))
    save(given.output, machine() | {"workers": WORKERS}, executors=frame)


if __name__ == "__main__":
    main()
