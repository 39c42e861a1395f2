"""Where the local CNNs train: fused on this machine, one by one, or on any `concurrent.futures.Executor`.

Local training needs no communication (P1, P2), so all engines compute the same weights up to rounding.
"""

import copy
import os
import pickle
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch

from . import checks
from .backbones import groupable
from .devices import choose_device, memory_free
from .images import ImageSet, Split
from .local import LocalCNNs
from .training import RECIPES, Recipe, fit, predict, progress_bar, trains

if TYPE_CHECKING:
    import pandas as pd

ENGINES = ("auto", "fused", "loop")
PROCESS = uuid4().hex  # of this process, on whatever machine
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

Images = ImageSet | Split | Sequence[Split]


@trains
def train_local(
    local: LocalCNNs,
    data: Images,
    recipe: Recipe = RECIPES["local"],
    *,
    engine: str | Executor = "auto",
    per_task: int = 1,
    checkpoint: str | Path | None = None,
    progress: bool | str = True,
) -> "pd.DataFrame":
    """Train the N local CNNs, each alone on its own window, in place (P1, P2: the first step).

    Args:
        data: the images of all; or a split of its own for each, of equal size (`channels.shares`).
        engine: "fused" trains all in one module with grouped convolutions, "loop" one after another, an executor a
            task for each, on its workers.  "auto" is fused, the faster one wherever it was measured
            (`results/bench`), and the loop for backbones that cannot be grouped, or where memory is short.
        per_task: how many local CNNs share a task of an executor, fused; alone, they are those of "loop" bit for bit.
        checkpoint: a file (fused), or the stem of one file for each task; training goes on from there.

    Returns:
        A row an epoch: loss and train_accuracy, means over the networks; seconds, the sum over what was trained
        apart; and, where each was trained alone, seconds_longest, those of the network that took longest in all,
        which is what N workers would need.

    Raises:
        ValueError: an unknown engine (the nearest is named), or a recipe that does not fit the data or the device.
        RuntimeError: a worker of the executor died, or cannot import `ddlib` or the backbone.
    """
    if not isinstance(data, ImageSet | Split) and (len(data) != len(local) or len({*map(len, data)}) != 1):
        raise ValueError(f"{len(local)} local CNNs need as many splits of equal size, got {[len(s) for s in data]}.")
    per_task = checks.whole("per_task", per_task, 1)
    if not isinstance(engine, Executor):
        engine = checks.one_of("engine", engine, ENGINES)
        if engine == "fused" or (engine == "auto" and groupable(local.backbone) and _fits(local, data, recipe)):
            return fit(local, _images(data, range(len(local))), recipe, checkpoint=checkpoint, progress=progress)
        engine, per_task = _Here(), 1
    return _train_apart(local, data, recipe, engine, per_task, checkpoint, progress)


def process_pool(workers: int, threads: int = 1) -> ProcessPoolExecutor:
    """Fresh processes on this machine, with `threads` threads each: more threads than cores stall one another."""
    context, count = get_context("spawn"), checks.whole("threads", threads, 1)
    return ProcessPoolExecutor(checks.whole("workers", workers, 1), context, _choose_threads, (count,))


def train_part(
    part: LocalCNNs, data: bytes | Split, recipe: Recipe, checkpoint: str | None, sender: str
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """The task of an executor: train a few local CNNs; weights (on the CPU) and history out.  May run twice.

    In a process of its own it computes with one thread, since others run beside it, unless that process was told
    another number, by OMP_NUM_THREADS or `torch.set_num_threads`.

    Args:
        data: how to load the data set on the worker (its source and its digest, pickled), or its training split.
        sender: `PROCESS` of the caller.
    """
    threads = torch.get_num_threads()
    crowded = sender != PROCESS and "OMP_NUM_THREADS" not in os.environ and threads == CORES
    torch.set_num_threads(1 if crowded else threads)
    try:
        split = data if isinstance(data, Split) else _loaded(data).train
        part = copy.deepcopy(part)  # an executor of threads hands over the caller's own
        history = fit(part, split, recipe, checkpoint=checkpoint, progress=False)
        return part.cpu().state_dict(), history.to_dict("records")
    finally:
        torch.set_num_threads(threads)


class _Here(Executor):
    """Runs each task at once: one after another, in this process."""

    def submit(self, task: Callable[..., Any], /, *arguments: Any) -> Future:
        done: Future = Future()
        done.set_result(task(*arguments))
        return done


def _train_apart(
    local: LocalCNNs,
    data: Images,
    recipe: Recipe,
    executor: Executor,
    per_task: int,
    checkpoint: str | Path | None,
    progress: bool | str,
) -> "pd.DataFrame":
    """`per_task` local CNNs a task; their histories joined."""
    import pandas as pd

    number = len(local)
    if isinstance(data, ImageSet):
        by_name = data.source and not isinstance(executor, _Here)
        data = pickle.dumps((data.source, data.digest)) if by_name else data.train
    chosen = [list(range(start, min(start + per_task, number))) for start in range(0, number, per_task)]
    parts = [local.cpu().part(indices) for indices in chosen]  # before any is trained: it would see the random state
    tasks, histories = [], []
    title = progress if isinstance(progress, str) else "local CNNs"
    with progress_bar(title, len(parts), shown=bool(progress)) as bar:
        try:
            for indices, part in zip(chosen, parts, strict=True):
                own = data if isinstance(data, bytes) else _images(data, indices)
                path = checkpoint and f"{checkpoint}.{'-'.join(map(str, indices))}"
                tasks.append(executor.submit(train_part, part, own, recipe, path, PROCESS))
                tasks[-1].add_done_callback(lambda _: bar.update())
            results = [task.result() for task in tasks]
        except (BrokenExecutor, ModuleNotFoundError) as error:  # a process dies of what it cannot read; Dask tells it
            told = "a worker of the executor died, or cannot import ddlib or what the backbone needs"
            raise RuntimeError(f"{told}: {error}") from error
    for indices, part, (state, rows) in zip(chosen, parts, results, strict=True):
        part.load_state_dict(state)
        local.load_part(indices, part)
        history, share = pd.DataFrame(rows).set_index("epoch"), len(indices) / number
        means = {name: share * history[name] for name in ("loss", "train_accuracy")}
        histories.append(history.assign(**means))
    joined = sum(history[["loss", "train_accuracy", "seconds"]] for history in histories)
    joined.insert(2, "rate", histories[0]["rate"])
    if per_task == 1:
        joined["seconds_longest"] = max((history["seconds"] for history in histories), key=sum)
    return joined.reset_index()


def _images(data: Images, indices: Sequence[int]) -> Split:
    """What the local CNNs `indices` train on; splits of their own side by side, as further channels and labels."""
    if isinstance(data, ImageSet | Split):
        return data.train if isinstance(data, ImageSet) else data
    own = [data[index] for index in indices]
    if len(own) == 1:
        return own[0]
    return replace(
        own[0],
        images=torch.cat([split.images for split in own], 1),  # (n, N·C, *shape)
        labels=torch.stack([split.labels for split in own], 1),  # (n, N)
        mean=torch.cat([split.mean for split in own]),
        std=torch.cat([split.std for split in own]),
    )


def _fits(local: LocalCNNs, data: Images, recipe: Recipe) -> bool:
    """Whether all local CNNs side by side fit into the memory that is free, by the outputs of their layers.

    A training step keeps each of them and its gradient, in single precision at the most.
    """
    kept: list[int] = []
    layers = [layer for layer in local.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(lambda _, __, output: kept.append(output.numel())) for layer in layers]
    predict(local, _images(data, [0]).some(torch.arange(1)), precision="fp32")
    for hook in hooks:
        hook.remove()
    needed, free = 2 * 4 * recipe.batch_size * sum(kept), memory_free(choose_device(recipe.device))
    if needed > 0.8 * free:
        sizes = f"{needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        warnings.warn(f"{len(local)} local CNNs side by side need about {sizes}: engine='loop' is taken.", stacklevel=3)
    return needed <= 0.8 * free


def _choose_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # `train_part` keeps to what was chosen


@lru_cache(maxsize=1)
def _loaded(packed: bytes) -> ImageSet:
    """The data set, loaded once in each worker; it must be what the caller has."""
    source, digest = pickle.loads(packed)
    data = source()
    if data.digest != digest:
        raise ValueError(f"the images of {data.name} on this worker are not the caller's: they have changed since.")
    return data
