"""What the coherent model sends over ranks, in the two ways in which R ranks can train it.

*By subdomain* (`ddlib.ranks`) each holds some local CNNs, sees all images and sends its local probabilities;
*data-parallel* each holds the whole model, sees a share of each batch and sends the gradients of all parameters.
"""

import copy
import math
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from .. import ranks as parallel
from ..backbones import count_parameters
from ..engines import process_pool
from ..images import ImageSet, memory_format
from ..model import CNNDNN
from ..training import Recipe, fit

if TYPE_CHECKING:
    import pandas as pd

BYTES = 4  # of a number in single precision


def check_ranks(ranks: Iterable[int], subdomains: int, batch_size: int) -> None:
    """Raises ValueError where a rank would have no subdomain, or not as many images of each batch as the others."""
    for count in ranks:
        parallel.share(subdomains, count, 0)
        if batch_size % count or batch_size < 2 * count:
            raise ValueError(f"batch_size must give each of {count} ranks as many images, 2 or more, got {batch_size}.")


def communication(model: CNNDNN, data: ImageSet, recipe: Recipe, ranks: Iterable[int]) -> "pd.DataFrame":
    """Both ways on processes of this machine, over gloo: a row for each number of ranks and each way.

    Returns:
        way; ranks; sent (bytes that one rank sends a step, as a ring sends them, counted over the tensors that are
        handed to the collectives); expected (the same by formula); seconds (of a step, in the second epoch).

    Raises:
        ValueError: see `check_ranks`.
    """
    import pandas as pd

    counts, subdomains, batch = sorted(set(ranks)), len(model.local), recipe.batch_size
    check_ranks(counts, subdomains, batch)
    recipe, steps, rows = replace(recipe, epochs=2, device="cpu"), len(data.train) // batch, []
    with process_pool(max(counts)) as pool, TemporaryDirectory() as folder:
        for count in counts:
            store = (Path(folder) / str(count)).as_uri()
            tasks = [pool.submit(_both_ways, rank, count, store, model, data, recipe) for rank in range(count)]
            first, *_ = [task.result() for task in tasks]
            most = math.ceil(subdomains / count)  # of the ranks that have most
            expected = {
                "by subdomain": (count - 1) * batch * most * model.local.num_classes * BYTES,
                "data-parallel": 2 * (count - 1) / count * count_parameters(model) * BYTES,
            }
            for way, (sent, seconds) in first.items():
                rows.append((way, count, sent / steps, expected[way], seconds / steps))
    return pd.DataFrame(rows, columns=["way", "ranks", "sent", "expected", "seconds"])


def _both_ways(rank: int, ranks: int, store: str, *training: Any) -> dict[str, tuple[float, float]]:
    """Bytes and seconds of the second epoch, on one rank, which is a process of its own."""
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    try:
        return {"by subdomain": _by_subdomain(*training), "data-parallel": _data_parallel(*training)}
    finally:
        dist.destroy_process_group()


def _by_subdomain(model: CNNDNN, data: ImageSet, recipe: Recipe) -> tuple[float, float]:
    last = parallel.train_coherent(copy.deepcopy(model), data, recipe, progress=False).iloc[-1]
    return last["sent"], last["seconds"]


def _data_parallel(model: CNNDNN, data: ImageSet, recipe: Recipe) -> tuple[float, float]:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    ranks, steps, sent = parallel.count(), len(data.train) // recipe.batch_size, 0.0

    def counted(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        nonlocal sent
        sent += 2 * (ranks - 1) / ranks * bucket.buffer().nbytes
        return allreduce_hook(state, bucket)

    whole = copy.deepcopy(model).to(memory_format=memory_format(len(data.image_shape)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a name that is not in all versions yet
        replica = DistributedDataParallel(whole, broadcast_buffers=False)
    replica.register_comm_hook(None, counted)
    share = recipe.batch_size // ranks
    own = torch.arange(parallel.rank(), len(data.train), ranks)[: steps * share]  # as many on every rank
    history = fit(replica, data.train.some(own), replace(recipe, batch_size=share), progress=False)
    return sent / recipe.epochs, history["seconds"].iloc[-1]
