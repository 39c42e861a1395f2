"""Where the local CNNs train: fused on this machine, one by one, or on any `concurrent.futures.Executor`.

Local training needs no communication (P1, P2), so all engines compute the same weights up to rounding.
"""

import copy
import math
import pickle
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import checks
from .backbones import groupable
from .images import ImageSet, Split
from .local import LocalCNNs
from .training import RECIPES, Recipe, choose_device, fit, progress_bar

if TYPE_CHECKING:
    import pandas as pd

ENGINES = ("auto", "fused", "loop")


def train_local(
    local: LocalCNNs,
    data: ImageSet | Split | Sequence[Split],
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
        engine: "fused" trains all in one module with grouped convolutions, in several passes where memory is short;
            "loop" one after another; an executor a task for each, on its workers.  "auto" is fused, which was the
            faster one wherever it was measured (`ddlib bench`), and the loop for backbones that cannot be grouped.
        per_task: how many local CNNs share a task of an executor, fused; alone, they are those of "loop" bit for bit.
        checkpoint: a file (fused), or the stem of one file for each part; training goes on from there.

    Returns:
        A row an epoch: loss and train_accuracy, means over the networks; seconds, the sum over what was trained
        apart; and, where each was trained alone, seconds_longest, those of the network that took longest in all,
        which is what N workers would need.

    Raises:
        ValueError: an unknown engine (the nearest is named), or a recipe that does not fit the data or the device.
    """
    each = [[index] for index in range(len(local))]
    if not isinstance(data, (ImageSet, Split)) and (len(data) != len(local) or len({*map(len, data)}) != 1):
        raise ValueError(f"{len(local)} local CNNs need as many splits of equal size, got {[len(s) for s in data]}.")
    if isinstance(engine, Executor):
        size = checks.whole("per_task", per_task, 1)
        tasks = [list(range(start, min(start + size, len(local)))) for start in range(0, len(local), size)]
        return _gather(local, _on_executor(local, tasks, data, recipe, engine, checkpoint, progress))
    engine = checks.one_of("engine", engine, ENGINES)
    if engine == "auto":
        engine = "fused" if groupable(local.backbone) else "loop"
    begun = checkpoint is not None and Path(checkpoint).exists()  # in one pass: it goes on so
    parts = each if engine == "loop" else [[*range(len(local))]] if begun else _passes(local, data, recipe)
    if len(parts) == 1 and engine == "fused":
        return fit(local, _images(data, parts[0]), recipe, checkpoint=checkpoint, progress=progress)
    return _gather(local, _one_by_one(local, parts, data, recipe, checkpoint, progress))


def process_pool(workers: int, threads: int = 1) -> ProcessPoolExecutor:
    """Fresh processes on this machine, with `threads` threads each: more threads than cores stall one another."""
    return ProcessPoolExecutor(
        checks.whole("workers", workers, 1),
        mp_context=get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(checks.whole("threads", threads, 1),),
    )


@contextmanager
def dask_executor(address: str, workers: int = 1) -> Iterator[Executor]:
    """The executor of a Dask cluster (extra `cluster`): of the scheduler at an address, or "local", on this machine.

    Raises:
        ImportError: dask.distributed is not installed.
        OSError: no scheduler answers at the address.
    """
    try:
        from dask.distributed import Client, LocalCluster
    except ImportError as error:
        raise ImportError(f"Dask is not installed ({error}): pip install 'ddlib[cluster]'.") from None
    local = address == "local"
    place = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") if local else address
    try:
        with Client(place, timeout=20) as client, client.get_executor(retries=2) as executor:
            print(f"Dask dashboard: {client.dashboard_link}")
            yield executor
    finally:
        if local:
            place.close()


def train_part(
    part: LocalCNNs, data: bytes | Split, recipe: Recipe, checkpoint: str | None = None
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """The task of an executor: train a few local CNNs; weights (on the CPU) and history out.  May run twice.

    Args:
        data: how to load the data set on the worker (a pickled `ImageSet.source`), or its training split itself.
    """
    split = data if isinstance(data, Split) else _loaded(data).train
    part = copy.deepcopy(part)  # an executor of threads hands over the caller's own
    history = fit(part, split, recipe, checkpoint=checkpoint, progress=False)
    return part.cpu().state_dict(), history.to_dict("records")


Trained = tuple[Sequence[int], LocalCNNs, list[dict[str, float]]]


def _one_by_one(
    local: LocalCNNs,
    parts: Sequence[Sequence[int]],
    data: ImageSet | Split | Sequence[Split],
    recipe: Recipe,
    checkpoint: str | Path | None,
    progress: bool | str,
) -> Iterator[Trained]:
    copies = [local.part(indices) for indices in parts]  # before any is trained and put back
    for number, (indices, part) in enumerate(zip(parts, copies, strict=True)):
        title = progress and f"local CNNs, {number + 1} of {len(parts)}"
        own = _images(data, indices)
        history = fit(part, own, recipe, checkpoint=_numbered(checkpoint, indices), progress=title)
        yield indices, part, history.to_dict("records")


def _on_executor(
    local: LocalCNNs,
    parts: Sequence[Sequence[int]],
    data: ImageSet | Split | Sequence[Split],
    recipe: Recipe,
    executor: Executor,
    checkpoint: str | Path | None,
    progress: bool | str,
) -> Iterator[Trained]:
    local.cpu()
    if isinstance(data, ImageSet):
        data = pickle.dumps(data.source) if data.source else data.train
    client = getattr(executor, "_client", None)  # Dask's
    if client is not None and progress:
        print(f"Dask dashboard: {client.dashboard_link}")
    tasks = {}
    for indices in parts:
        part = local.part(indices)
        own = data if isinstance(data, bytes) else _images(data, indices)
        task = executor.submit(train_part, part, own, recipe, _numbered(checkpoint, indices))
        tasks[task] = indices, part
    with progress_bar(progress if isinstance(progress, str) else "local CNNs", len(tasks), shown=bool(progress)) as bar:
        for task in as_completed(tasks):
            indices, part = tasks[task]
            state, history = task.result()
            part.load_state_dict(state)
            bar.update()
            yield indices, part, history


def _gather(local: LocalCNNs, trained: Iterator[Trained]) -> "pd.DataFrame":
    """Put the trained parts back and join their histories."""
    import pandas as pd

    rows: list[dict[str, float]] = []
    alone = True
    for number, (indices, part, history) in enumerate(trained):
        local.to(next(part.parameters()).device).load_part(indices, part)
        share = len(indices) / len(local)
        rows += [
            {**row, "loss": share * row["loss"], "train_accuracy": share * row["train_accuracy"], "part": number}
            for row in history
        ]
        alone = alone and len(indices) == 1
    frame = pd.DataFrame(rows)
    epochs = frame.groupby("epoch")
    joined = epochs.agg(
        loss=("loss", "sum"),
        train_accuracy=("train_accuracy", "sum"),
        rate=("rate", "first"),
        seconds=("seconds", "sum"),
    )
    if alone:
        longest = frame[frame["part"] == frame.groupby("part")["seconds"].sum().idxmax()]
        joined["seconds_longest"] = longest.set_index("epoch")["seconds"]
    return joined.reset_index()


def _images(data: ImageSet | Split | Sequence[Split], indices: Sequence[int]) -> Split:
    """What the local CNNs `indices` train on; splits of their own side by side, as further channels and labels."""
    if isinstance(data, (ImageSet, Split)):
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


def _passes(local: LocalCNNs, data: ImageSet | Split | Sequence[Split], recipe: Recipe) -> list[list[int]]:
    """The subdomains of each fused pass: all in one, or fewer where one pass would not fit into memory."""
    split = _images(data, [0])
    needed, free = _memory_needed(local, split, recipe), _memory_free(choose_device(recipe.device))
    count = min(len(local), max(1, math.ceil(needed / (0.8 * free))))
    if count > 1:
        gib = 2**30
        warnings.warn(
            f"the {len(local)} local CNNs are trained in {count} passes: one pass would need about "
            f"{needed / gib:.1f} GiB, {free / gib:.1f} GiB are free.",
            stacklevel=3,
        )
    size = math.ceil(len(local) / count)
    return [list(range(start, min(start + size, len(local)))) for start in range(0, len(local), size)]


def _memory_needed(local: LocalCNNs, split: Split, recipe: Recipe) -> int:
    """Bytes that one training step keeps: each layer's output twice (value and gradient), in single precision."""
    kept = []
    hooks = [
        layer.register_forward_hook(lambda _layer, _input, output: kept.append(output.numel()))
        for layer in local.modules()
        if not list(layer.children())
    ]
    modes = {module: module.training for module in local.modules()}
    with torch.no_grad():
        first = next(local.parameters())
        local.eval()(torch.zeros(1, *split.images.shape[1:], dtype=first.dtype, device=first.device))
    for hook in hooks:
        hook.remove()
    for module, mode in modes.items():
        module.training = mode
    return 2 * 4 * recipe.batch_size * sum(kept)


def _memory_free(device: torch.device) -> int:
    """Bytes of memory that are free on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def _numbered(checkpoint: str | Path | None, indices: Sequence[int]) -> str | None:
    return None if checkpoint is None else f"{checkpoint}.{'-'.join(map(str, indices))}"


@lru_cache(maxsize=1)
def _loaded(source: bytes) -> ImageSet:
    """The data set, loaded once in each worker."""
    return pickle.loads(source)()
