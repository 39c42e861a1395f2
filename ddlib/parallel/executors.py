"""Where the local CNNs train: fused on this machine, one by one, or on any `concurrent.futures.Executor`.

Local training needs no communication (P1, P2), so all engines compute the same weights up to rounding.
"""

import copy
import os
import pickle
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch

from .._internal import checks
from .._internal.devices import choose_device, memory_free
from .._internal.progress import progress_bar
from ..images import ImageSet, Split, normalised_as, split_of
from ..local import LocalCNNs
from ..networks.backbones import groupable
from ..training import RECIPES, Loss, Recipe, fit, predict, trains

if TYPE_CHECKING:
    import pandas as pd

ENGINES = ("auto", "fused", "streams", "loop")

UNREADABLE = (BrokenExecutor, ModuleNotFoundError, pickle.PicklingError, AttributeError)

Images = ImageSet | Split | Sequence[Split]


@trains
def train_local(
    local: LocalCNNs,
    data: Images,
    recipe: Recipe = RECIPES["local"],
    *,
    engine: str | Executor = "auto",
    per_task: int = 1,
    loss: Loss | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | str = True,
) -> "pd.DataFrame":
    """Train the N local CNNs, each alone on its own window, in place (P1, P2: the first step).

    Args:
        data: the images of all; or a split of its own for each (`channels.shares`), which "fused" cannot take.
        engine: "fused" trains all in one module with grouped convolutions, "streams" side by side in one step, each on
            a stream of its GPU, "loop" one after another, an executor a task for each, on its workers.  "auto" is
            fused, the faster one where local CNNs are narrow (`results/bench`; those of full width take about as
            long either way; streams were not timed), and the loop where they cannot be grouped, or memory is short.
        per_task: how many local CNNs share a task of an executor, fused; alone, they are those of "loop" bit for bit.
        loss: as in `fit`, of each local CNN.
        checkpoint: a file (fused), or the stem of one file for each task; training goes on from there.

    Returns:
        A row an epoch: loss and train_accuracy, means over the networks; seconds, the sum over what was trained
        apart; and, where each was trained alone, seconds_longest, those of the network that took longest in all,
        which is what N workers would need.

    Raises:
        ValueError: an unknown engine (the nearest is named), or a recipe that does not fit the data or the device.
        RuntimeError: a worker of the executor died, or cannot import `ddlib` or the backbone.
    """
    several = isinstance(data, Sequence)
    if several and len(data) != len(local):
        raise ValueError(f"{len(local)} local CNNs need as many splits, got {len(data)}.")
    splits = [split_of(own, "train_local") for own in (data if several else [data])]
    per_task = checks.integer("per_task", per_task, 1)
    if several and per_task > 1:
        raise ValueError(f"per_task must be 1 where each local CNN has a split of its own, got {per_task}.")
    local.check_independent()
    if not isinstance(engine, Executor):
        engine = checks.one_of("engine", engine, ENGINES)
        if engine in ("fused", "streams") and several:
            raise ValueError(f"engine {engine!r} needs the same images for all; for splits of their own take 'loop'.")
        fused = engine == "auto" and not several and groupable(local.backbone) and _fits(local, splits[0], recipe)
        if engine == "fused" or fused:
            return fit(local, splits[0], recipe, loss=loss, checkpoint=checkpoint, progress=progress)
        if engine == "streams":
            apart = local.part(range(len(local)), apart=True)
            history = fit(apart, splits[0], recipe, loss=loss, checkpoint=checkpoint, progress=progress)
            local.load_part(range(len(local)), apart)
            normalised_as(local, splits[0])
            return history
        engine, per_task = _Here(), 1
    return _train_apart(local, data, recipe, engine, per_task, loss, checkpoint, progress)


def _train_apart(
    local: LocalCNNs,
    data: Images,
    recipe: Recipe,
    executor: Executor,
    per_task: int,
    loss: Loss | None,
    checkpoint: str | Path | None,
    progress: bool | str,
) -> "pd.DataFrame":
    """`per_task` local CNNs a task; their histories joined."""
    import pandas as pd

    several = isinstance(data, Sequence)
    split = None if several else split_of(data, "train_local")
    chosen = [list(range(len(local)))[start : start + per_task] for start in range(0, len(local), per_task)]
    by_name = isinstance(data, ImageSet) and not isinstance(executor, _Here) and data.by_name
    name = pickle.dumps((data.source, data.loaded)) if by_name else None
    tasks, histories = [], []
    title = progress if isinstance(progress, str) else "local CNNs"
    with progress_bar(title, len(chosen), shown=bool(progress)) as bar:
        try:
            for indices in chosen:
                part, own = _packed(local.part(indices).cpu(), executor), data[indices[0]] if several else split
                path = checkpoint and f"{checkpoint}.{'-'.join(map(str, sorted({indices[0], indices[-1]})))}"
                tasks.append(executor.submit(train_part, part, name or own, recipe, loss, path, PROCESS))
                tasks[-1].add_done_callback(lambda _: bar.update())
            results = [task.result() for task in tasks]
        except UNREADABLE as error:  # a process dies of what it cannot read; others tell it
            message = "a worker of the executor died, or cannot import ddlib or what the backbone needs"
            raise RuntimeError(f"{message}: {error}") from error
        finally:
            for task in tasks:  # where one has failed, or Ctrl-C
                task.cancel()
    for indices, packed in zip(chosen, results, strict=True):
        part, rows = _unpacked(packed)
        local.load_part(indices, part)
        history, share = pd.DataFrame(rows).set_index("epoch"), len(indices) / len(local)
        means = {name: share * history[name] for name in ("loss", "train_accuracy")}
        histories.append(history.assign(**means))
    normalised_as(local, data[0] if several else split)
    joined = sum(history[["loss", "train_accuracy", "seconds"]] for history in histories)
    joined.insert(2, "rate", histories[0]["rate"])
    if per_task == 1:
        joined["seconds_longest"] = max((history["seconds"] for history in histories), key=sum)
    return joined.reset_index()


def _fits(local: LocalCNNs, split: Split, recipe: Recipe) -> bool:
    """Whether all local CNNs side by side fit into the memory that is free, by the outputs of their layers.

    A training step keeps each of them and its gradient, in single precision at the most.
    """
    kept: list[int] = []
    layers = [layer for layer in local.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(lambda _, __, output: kept.append(output.numel())) for layer in layers]
    try:
        predict(local, split.some(torch.arange(1)), precision="fp32")
    finally:
        for hook in hooks:
            hook.remove()
    device = choose_device(recipe.device, next(local.parameters()).device)
    needed, free = 2 * 4 * recipe.batch_size * sum(kept), memory_free(device)
    if needed > 0.8 * free:
        sizes = f"{needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        warnings.warn(f"{len(local)} local CNNs side by side need about {sizes}: engine='loop' is taken.", stacklevel=3)
    return needed <= 0.8 * free


# ── a task, and the process that carries it out ──

PROCESS = uuid4().hex  # of this process, on whatever machine
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def process_pool(workers: int, threads: int = 1) -> ProcessPoolExecutor:
    """Fresh processes on this machine, with `threads` threads each: more threads than cores stall one another."""
    context, count = get_context("spawn"), checks.integer("threads", threads, 1)
    return ProcessPoolExecutor(checks.integer("workers", workers, 1), context, _choose_threads, (count,))


def train_part(
    packed: LocalCNNs | bytes,
    images: bytes | Split,
    recipe: Recipe,
    loss: Loss | None,
    checkpoint: str | None,
    sender: str,
) -> tuple[LocalCNNs, list[dict[str, float]]] | bytes:
    """The task of an executor: train a few local CNNs, and return them with their history.  May run twice.

    In a process of its own it computes with one thread, since others run beside it, unless that process was told
    another number, by OMP_NUM_THREADS or `torch.set_num_threads`.

    Args:
        packed: the local CNNs, or these pickled; they return as they came.
        images: how to load the data set on the worker (its source and its digest, pickled), or its training split.
        sender: `PROCESS` of the caller.

    Raises:
        ValueError: the images loaded by name are not the caller's.
    """
    threads = torch.get_num_threads()
    crowded = sender != PROCESS and "OMP_NUM_THREADS" not in os.environ and threads == CORES
    torch.set_num_threads(1 if crowded else threads)
    try:
        split = images if isinstance(images, Split) else _loaded(images).train
        part = _unpacked(packed) if isinstance(packed, bytes) else copy.deepcopy(packed)  # of threads: the caller's own
        history = fit(part, split, recipe, loss=loss, checkpoint=checkpoint, progress=False)
        result = part.cpu(), history.to_dict("records")
        return pickle.dumps(result) if isinstance(packed, bytes) else result
    finally:
        torch.set_num_threads(threads)


def _packed(part: LocalCNNs, executor: Executor) -> LocalCNNs | bytes:
    """As bytes for processes of this machine: each tensor would take up a file descriptor, of which some have 1,024."""
    return pickle.dumps(part) if isinstance(executor, ProcessPoolExecutor) else part


def _unpacked(packed: Any) -> Any:
    return pickle.loads(packed) if isinstance(packed, bytes) else packed


class _Here(Executor):
    """Runs each task at once: one after another, in this process."""

    def submit(self, task: Callable[..., Any], /, *arguments: Any) -> Future:
        done: Future = Future()
        done.set_result(task(*arguments))
        return done


def _choose_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # `train_part` keeps to what was chosen


@lru_cache(maxsize=1)
def _loaded(packed: bytes) -> ImageSet:
    """The data set, loaded once in each worker; it must be what the caller has."""
    source, identity = pickle.loads(packed)
    data = source()
    if data.identity != identity:
        raise ValueError(f"the images of {data.name} on this worker are not the caller's: they have changed since.")
    return data
