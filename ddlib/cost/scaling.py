"""How training scales over processes: local CNNs over workers, and what the coherent model sends.

Two ways to train one coherent model on R ranks: *by subdomain* (`ranks`), where each holds some local CNNs, sees
all images and sends its local probabilities; and *data-parallel*, where each holds the whole model, sees a share of
each batch and sends the gradients of all parameters.
"""

import copy
import math
import os
import socket
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from .. import checks
from .. import ranks as parallel
from ..aggregation import DenseAggregator
from ..backbones import count_parameters
from ..engines import process_pool, train_local
from ..images import ImageSet, memory_format
from ..local import LocalCNNs
from ..model import CNNDNN
from ..training import Recipe, fit

if TYPE_CHECKING:
    import pandas as pd

BYTES = 4  # of a number in single precision


def local_training(local: LocalCNNs, data: ImageSet, recipe: Recipe, workers: Sequence[int]) -> "pd.DataFrame":
    """Strong scaling of local training: the same N local CNNs on more and more workers, a thread each.

    Returns:
        A row for each number of workers, measured ones and all powers of two up to N: workers, seconds (measured, else
        NaN; without the start of the workers, but with the images that travel to them where their set has no name),
        ideal (seconds that the times of the single local CNNs allow).
    """
    import pandas as pd

    first, seconds = replace(recipe, epochs=1), {}
    for count in sorted(set(workers)):
        with process_pool(count) as pool:
            train_local(copy.deepcopy(local), data, first, engine=pool, progress=False)  # workers start
            start = time.perf_counter()
            history = train_local(copy.deepcopy(local), data, recipe, engine=pool, progress=False)
            seconds[count] = time.perf_counter() - start
        if count == min(workers):
            alone = history["seconds"].sum() / len(local)
    counts = sorted({*workers, len(local), *(2**k for k in range(int(math.log2(len(local))) + 1))})
    rows = [(count, seconds.get(count), math.ceil(len(local) / count) * alone) for count in counts]
    return pd.DataFrame(rows, columns=["workers", "seconds", "ideal"]).astype({"seconds": float})


def communication(model: CNNDNN, data: ImageSet, recipe: Recipe, ranks: Sequence[int]) -> "pd.DataFrame":
    """Both ways on this machine, over gloo: a row for each way and number of ranks.

    Returns:
        way, ranks, sent (bytes that one rank sends a step, as a ring sends them: summed over the tensors that are
        handed to the collectives), expected (the same by
        formula), seconds (of a step, in the second epoch).
    """
    import pandas as pd

    for count in ranks:
        if recipe.batch_size % count:
            raise ValueError(f"batch_size must be a multiple of the ranks, got {recipe.batch_size} for {count} ranks.")
    steps, rows = len(data.train) // recipe.batch_size, []
    recipe = replace(recipe, epochs=2, device="cpu")
    batch, parameters = recipe.batch_size, count_parameters(model)
    with ExitStack() as stack:
        pools = [stack.enter_context(process_pool(1)) for _ in range(max(ranks))]
        for count in ranks:
            most = math.ceil(len(model.local) / count)  # subdomains of the ranks that have most
            expected = {
                "by subdomain": (count - 1) * batch * most * model.local.num_classes * BYTES,
                "data-parallel": 2 * (count - 1) / count * parameters * BYTES,
            }
            for way, task in (("by subdomain", _by_subdomain), ("data-parallel", _data_parallel)):
                with socket.socket() as free:
                    free.bind(("127.0.0.1", 0))
                    port = free.getsockname()[1]
                tasks = [pools[r].submit(_on_rank, r, count, port, task, model, data, recipe) for r in range(count)]
                (sent, seconds), *_ = [task.result() for task in tasks]
                rows.append((way, count, sent / steps, expected[way], seconds / steps))
    return pd.DataFrame(rows, columns=["way", "ranks", "sent", "expected", "seconds"])


def _on_rank(rank: int, ranks: int, port: int, task: Callable[..., Any], model: CNNDNN, *arguments: Any) -> Any:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with parallel.ranks():
        return task(copy.deepcopy(model), *arguments)


def _by_subdomain(model: CNNDNN, data: ImageSet, recipe: Recipe) -> tuple[float, float]:
    """Bytes and seconds of the second epoch."""
    last = parallel.train_coherent(model, data, recipe, progress=False).iloc[-1]
    return last["sent"], last["seconds"]


def _data_parallel(model: CNNDNN, data: ImageSet, recipe: Recipe) -> tuple[float, float]:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    ranks, sent = parallel.count(), [0.0]

    def hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        sent[0] += 2 * (ranks - 1) / ranks * bucket.buffer().numel() * bucket.buffer().element_size()
        return allreduce_hook(state, bucket)

    whole = model.to(memory_format=memory_format(len(data.image_shape)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a name that is not in all versions yet
        replica = DistributedDataParallel(whole, broadcast_buffers=False)
    replica.register_comm_hook(None, hook)
    steps = len(data.train) // recipe.batch_size  # the same on every rank
    own = torch.arange(parallel.rank(), len(data.train), ranks)[: steps * (recipe.batch_size // ranks)]
    own = data.train.some(own)
    share = replace(recipe, batch_size=recipe.batch_size // ranks)
    last = fit(replica, own, share, progress=False).iloc[-1]
    return sent[0] / recipe.epochs, last["seconds"]


def on_paper(
    local: LocalCNNs, subdomains: Sequence[int], batch_size: int, latency: float, bandwidth: float
) -> "pd.DataFrame":
    """Both ways for N subdomains and N ranks, where the image grows with N and each local CNN stays as it is (ours).

    A message of n bytes takes latency + n / bandwidth.  Probabilities are gathered by recursive doubling, gradients
    summed by Rabenseifner's algorithm (Thakur, Rabenseifner, Gropp 2005): with s bytes in all on R ranks

        all-gather   log2(R) · latency + (R - 1) / R · s / bandwidth
        all-reduce   2 log2(R) · latency + 2 (R - 1) / R · s / bandwidth

    Data-parallel training has no use for more ranks than images in a batch.

    Args:
        latency: seconds.
        bandwidth: bytes a second.

    Returns:
        subdomains, way, ranks, parameters (of the whole model), sent (bytes that one rank sends a step), seconds (of
        communication a step).
    """
    import pandas as pd

    checks.real("latency", latency, 0)
    checks.real("bandwidth", bandwidth, 0, open_low=True)
    single = count_parameters(local) / len(local)
    rows = []
    for number in subdomains:
        parameters = round(number * single) + count_parameters(DenseAggregator(number, local.num_classes))
        few = min(number, batch_size)
        probabilities = batch_size * number * local.num_classes * BYTES
        for way, ranks, rounds, volume in (
            ("by subdomain", number, 1, probabilities),
            ("data-parallel", few, 2, parameters * BYTES),
        ):
            sent = rounds * (ranks - 1) / ranks * volume
            seconds = rounds * math.log2(ranks) * latency + sent / bandwidth
            rows.append((number, way, ranks, parameters, sent, seconds))
    return pd.DataFrame(rows, columns=["subdomains", "way", "ranks", "parameters", "sent", "seconds"])
