"""Where the local CNNs train: fused on this machine, one by one, or on any `concurrent.futures.Executor`.

Local training needs no communication (P1, P2), so all engines compute the same weights up to rounding.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import checks
from .datasets import ImageSet, Split, load_dataset
from .local import LocalCNNs
from .training import RECIPES, Recipe, fit

if TYPE_CHECKING:
    import pandas as pd

ENGINES = ("auto", "fused", "loop")


def train_local(
    local: LocalCNNs,
    data: ImageSet | Split,
    recipe: Recipe = RECIPES["local"],
    *,
    engine: str | Executor = "auto",
    checkpoint: str | Path | None = None,
    progress: bool | str = True,
) -> "pd.DataFrame":
    """Train the N local CNNs, each alone on its own window, in place (P1, P2: the first step).

    Args:
        engine: "fused" trains all in one module with grouped convolutions; "loop" one after another; an executor
            a task for each, on its workers; "auto" is fused, or the loop for a backbone that cannot be grouped.
        checkpoint: a file (fused), or the stem of one file for each local CNN; training goes on from there.

    Returns:
        A row an epoch: loss and train_accuracy, means over the networks; seconds, the sum over networks that were
        trained apart; and then seconds_longest, the longest of them, which is what N workers would need.
    """
    if isinstance(engine, Executor):
        return _gather(local, _on_executor(local, data, recipe, engine, checkpoint, progress))
    engine = checks.one_of("engine", engine, ENGINES)
    if engine == "auto":
        engine = "loop" if callable(local.backbone) else "fused"
    if engine == "fused":
        return fit(local, data, recipe, checkpoint=checkpoint, progress=progress)
    return _gather(local, _one_by_one(local, data, recipe, checkpoint, progress))


def process_pool(workers: int, threads: int = 1) -> ProcessPoolExecutor:
    """Fresh processes on this machine, with `threads` threads each: more threads than cores stall one another."""
    return ProcessPoolExecutor(
        checks.whole("workers", workers, 1),
        mp_context=get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(checks.whole("threads", threads, 1),),
    )


def train_part(
    part: LocalCNNs, data: dict[str, Any] | Split, recipe: Recipe, checkpoint: str | None = None
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """The task of an executor: train a few local CNNs; weights (on the CPU) and history out.  May run twice.

    Args:
        data: how to load the data set on the worker (`ImageSet.source`), or its training split itself.
    """
    split = data if isinstance(data, Split) else _loaded(**data).train
    history = fit(part, split, recipe, checkpoint=checkpoint, progress=False)
    return part.cpu().state_dict(), history.to_dict("records")


Trained = tuple[int, LocalCNNs, list[dict[str, float]]]


def _one_by_one(
    local: LocalCNNs, data: ImageSet | Split, recipe: Recipe, checkpoint: str | Path | None, progress: bool | str
) -> Iterator[Trained]:
    for index, name in enumerate(local.decomposition.names):
        part = local.part([index])
        title = f"local CNN {name} ({index + 1} of {len(local)})"
        history = fit(part, data, recipe, checkpoint=_numbered(checkpoint, index), progress=bool(progress) and title)
        yield index, part, history.to_dict("records")


def _on_executor(
    local: LocalCNNs,
    data: ImageSet | Split,
    recipe: Recipe,
    executor: Executor,
    checkpoint: str | Path | None,
    progress: bool | str,
) -> Iterator[Trained]:
    from tqdm import tqdm

    local.cpu()
    if isinstance(data, ImageSet):
        data = data.source or data.train
    parts = {index: local.part([index]) for index in range(len(local))}
    tasks = {
        executor.submit(train_part, part, data, recipe, _numbered(checkpoint, index)): index
        for index, part in parts.items()
    }
    title = progress if isinstance(progress, str) else "local CNNs"
    for task in tqdm(as_completed(tasks), total=len(tasks), desc=title, disable=not progress, leave=False):
        index = tasks[task]
        state, history = task.result()
        parts[index].load_state_dict(state)
        yield index, parts[index], history


def _gather(local: LocalCNNs, trained: Iterator[Trained]) -> "pd.DataFrame":
    """Put the trained parts back and join their histories."""
    import pandas as pd

    rows: list[dict[str, float]] = []
    for index, part, history in trained:
        local.to(next(part.parameters()).device).load_part([index], part)
        rows += history
    epochs = pd.DataFrame(rows).groupby("epoch")
    joined = epochs[["loss", "train_accuracy", "rate"]].mean()
    joined["seconds"], joined["seconds_longest"] = epochs["seconds"].sum(), epochs["seconds"].max()
    return joined.reset_index()


def _numbered(checkpoint: str | Path | None, index: int) -> str | None:
    return None if checkpoint is None else f"{checkpoint}.{index}"


@lru_cache(maxsize=1)
def _loaded_once(items: Sequence[tuple[str, Any]]) -> ImageSet:
    return load_dataset(**dict(items))


def _loaded(**source: Any) -> ImageSet:
    """The data set, loaded once in each worker."""
    return _loaded_once(tuple(sorted(source.items())))
