"""What the coherent model sends over ranks, in the two ways in which R ranks can train it.

*By subdomain* (`ddlib.ranks`) each holds some local CNNs, sees all images and sends its local probabilities;
*data-parallel* each holds the whole model, sees a share of each batch and sends the gradients of all parameters.
Notebook 06 shows what is measured here.
"""

import copy
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from ddlib import CNNDNN, ImageSet, Recipe, checks, fit, process_pool
from ddlib import ranks as parallel
from ddlib.cost.training_time import compare
from ddlib.images import memory_format

LARGE = 4_000_000  # bytes of a message whose latency does not matter


def communication(model: CNNDNN, data: ImageSet, recipe: Recipe, ranks: Iterable[int]) -> pd.DataFrame:
    """Both ways on processes of this machine, over gloo: a row for each number of ranks and each way.

    Returns:
        way; ranks; sent (bytes that one rank sends a step, as a ring sends them, counted over the tensors that are
        handed to the collectives); seconds (of a step, in the second epoch).

    Raises:
        ValueError: more ranks than subdomains, or a batch of less than two images for each rank.
    """
    counts = sorted(set(ranks))
    parallel.assign(len(model.local), counts[-1])
    checks.integer("batch_size", recipe.batch_size, 2 * counts[-1])
    recipe, steps, rows = replace(recipe, epochs=2, device="cpu"), len(data.train) // recipe.batch_size, []
    with process_pool(counts[-1]) as pool, TemporaryDirectory() as folder:
        for count in counts:
            store = (Path(folder) / str(count)).as_uri()  # where the ranks meet
            tasks = [pool.submit(_both_ways, rank, count, store, model, data, recipe) for rank in range(count)]
            found = [task.result() for task in tasks]
            rows += [(way, count, sent / steps, seconds / steps) for way, (sent, seconds) in found[0].items()]
    return pd.DataFrame(rows, columns=["way", "ranks", "sent", "seconds"])


def latency_and_bandwidth(repeats: int = 50) -> tuple[float, float]:
    """Of messages between two processes of this machine, over gloo: seconds at least, and bytes a second (medians)."""
    with process_pool(2) as pool, TemporaryDirectory() as folder:
        store = (Path(folder) / "messages").as_uri()
        taken, _ = pool.map(_exchange, range(2), [store] * 2, [repeats] * 2)
    return taken[1], LARGE / max(taken[LARGE] - taken[1], 1e-9)


def _exchange(rank: int, store: str, repeats: int) -> dict[int, float]:
    """Bytes, one and `LARGE` → the median seconds in which two ranks give one another so many."""
    with _joined(rank, 2, store):
        own = {size: torch.zeros(size, dtype=torch.uint8) for size in (1, LARGE)}
        tasks = {size: partial(dist.all_gather, [torch.empty_like(x) for _ in range(2)], x) for size, x in own.items()}
        return compare(tasks, repeats)


@contextmanager
def _joined(rank: int, ranks: int, store: str) -> Iterator[None]:
    """This process as a rank of a group that meets in a file."""
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _both_ways(rank: int, ranks: int, store: str, model: CNNDNN, data: ImageSet, recipe: Recipe) -> dict[str, Any]:
    """Bytes and seconds of the second epoch, on one rank, which is a process of its own."""
    with _joined(rank, ranks, store):
        with _counted() as sent:
            history = parallel.train_coherent(copy.deepcopy(model), data, recipe, progress=False)
        by_subdomain = sum(sent) / recipe.epochs, history["seconds"].iloc[-1]
        return {"by subdomain": by_subdomain, "data-parallel": _data_parallel(model, data, recipe)}


@contextmanager
def _counted() -> Iterator[list[int]]:
    """Bytes that this rank sends in each `all_gather`, as a ring sends them: its own tensor, and those passed on."""
    sent, real = [], dist.all_gather

    def counting(parts: list[torch.Tensor], own: torch.Tensor) -> None:
        sent.append((len(parts) - 1) * own.nbytes)
        real(parts, own)

    dist.all_gather = counting
    try:
        yield sent
    finally:
        dist.all_gather = real


def _data_parallel(model: CNNDNN, data: ImageSet, recipe: Recipe) -> tuple[float, float]:
    ranks, steps, sent = parallel.world_size(), len(data.train) // recipe.batch_size, 0.0

    def counted(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        nonlocal sent
        sent += 2 * (ranks - 1) / ranks * bucket.buffer().nbytes
        return allreduce_hook(state, bucket)

    whole = copy.deepcopy(model).to(memory_format=memory_format(len(data.image_shape)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a name that is not in all versions yet
        replica = DistributedDataParallel(whole, broadcast_buffers=False)
    replica.register_comm_hook(None, counted)
    share = recipe.batch_size // ranks  # images of a batch
    own = torch.arange(parallel.rank(), len(data.train), ranks)[: steps * share]  # as many on every rank
    history = fit(replica, data.train.some(own), replace(recipe, batch_size=share), progress=False)
    return sent / recipe.epochs, history["seconds"].iloc[-1]
