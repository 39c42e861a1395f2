"""The coherent model over many processes: each rank holds some subdomains and a copy of the dense network.

    torchrun --standalone --nproc-per-node 2 -m ddlib coherent --config docs/coherent_digits.yaml

All ranks see the same batches and draw the same random numbers.  Only the local probabilities travel, N·K numbers a
sample; gradients stay where they are: the head and the loss are computed on every rank, from the same probabilities,
so that each rank has the whole gradient of its own local CNNs, and all have the same one of the dense network.
"""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._internal import checks, files
from .._internal.checkpoints import Checkpoint
from ..decomposition import near_even
from ..images import ImageSet, Split, normalised_as, split_of
from ..model import CNNDNN
from ..training import RECIPES, Loss, Metrics, Recipe, fit, trains

if TYPE_CHECKING:
    import pandas as pd


def world_size() -> int:
    """How many ranks there are; 1 outside `process_group`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def assign(subdomains: int, ranks: int) -> list[list[int]]:
    """The subdomains of each rank: consecutive ones, as many as others have, or one more.

    Raises:
        ValueError: there are fewer subdomains than ranks.
    """
    checks.integer("ranks", ranks, 1)
    if ranks > subdomains:
        raise ValueError(f"{ranks} ranks cannot share {subdomains} subdomains; at most one rank for each.")
    return [list(range(start, stop)) for start, stop in near_even(subdomains, ranks)]


@contextmanager
def process_group(timeout: float = 7 * 24 * 3600) -> Iterator[int]:
    """Join the process group that torchrun describes in the environment, and leave it; yields this rank.

    gloo carries tensors of CPUs, nccl those of GPUs; each rank takes the GPU of its LOCAL_RANK.  Without torchrun
    there is one rank and no group.

    Args:
        timeout: seconds after which a rank that does not answer is given up: the first may train while the others
            wait.  One that dies is noticed at once.

    Raises:
        ValueError: there are more ranks on this host than GPUs.
    """
    if "RANK" not in os.environ:
        yield 0
        return
    backend = "gloo"
    if torch.cuda.is_available():
        own, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if own >= there:
            raise ValueError(f"rank {own} of this host finds no GPU of its own: there are {there}; start fewer ranks.")
        torch.cuda.set_device(own)
        backend = "cpu:gloo,cuda:nccl"
    wait = timedelta(seconds=timeout)
    store, own, world = next(dist.rendezvous("env://", timeout=wait))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":  # torchrun keeps the store over restarts, with stale addresses
        store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(backend, store=store, rank=own, world_size=world, timeout=wait)
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def from_first(make: Callable[[], Any]) -> Any:
    """What `make` returns on the first rank, given to all; the others wait for it."""
    if world_size() == 1:
        return make()
    answer: list[Any] = [None, None]
    if rank() == 0:
        try:
            answer[0] = make()
        except Exception as error:
            answer[1] = error
    with _lost_ranks_are_named():
        dist.broadcast_object_list(answer, 0, device=torch.device("cpu"))
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


class DistributedCNNDNN(nn.Module):
    """What one rank holds of a coherent model: its local CNNs, and a copy of the dense network.

    Attributes:
        assigned: the subdomains of each rank.
    """

    def __init__(self, whole: CNNDNN):
        super().__init__()
        self.assigned = assign(len(whole.local), world_size())
        self.local, self.head = whole.local.part(self.assigned[rank()]), copy.deepcopy(whole.head)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, *image_shape) → logits (B, K), the same on every rank."""
        return self.head(self.gather(self.local.probabilities(x)))

    def gather(self, own: Tensor) -> Tensor:
        """The rank's own probabilities (B, n, K) → those of all (B, N, K), where the others' are constants.

        Through `all_gather` with autograd every rank would add its own copy of the loss to local gradients.
        """
        most = max(map(len, self.assigned))
        padded = own.new_zeros(len(own), most, own.shape[2])
        padded[:, : own.shape[1]] = own.detach()
        parts = [torch.empty_like(padded) for _ in self.assigned]
        with _lost_ranks_are_named():
            dist.all_gather(parts, padded)
        parts = [part[:, : len(held)] for part, held in zip(parts, self.assigned, strict=True)]
        parts[rank()] = own
        return torch.cat(parts, 1)

    def agreed(self) -> int:
        """The number of ranks, whose copies of the dense network are the same.

        Raises:
            RuntimeError: the copies of the dense network have drifted apart.
        """
        found = _gathered(files.digest(*self.head.state_dict().values()))
        if len(set(found)) > 1:
            copies = ", ".join(f"{r}: {digest[:8]}" for r, digest in enumerate(found))
            raise RuntimeError(
                f"the copies of the dense network differ between ranks ({copies}). All ranks need the same kind of "
                "processor, the same versions and the same number of threads."
            )
        return len(found)


@trains
def train_coherent(
    model: CNNDNN,
    data: ImageSet | Split,
    recipe: Recipe = RECIPES["coherent"],
    *,
    loss: Loss | None = None,
    metrics: Metrics | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | str = True,
) -> "pd.DataFrame":
    """`fit` for the coherent model (P1) on all ranks: called by each, with the same model, which it trains in place.

    The same mathematics as in one process, and the same checkpoint, written by the first rank: any number of ranks
    can go on where another has stopped.  The history has one column more, ranks.

    Raises:
        ValueError: as `fit`; more ranks than subdomains.
        RuntimeError: a rank was lost, or the copies of the dense network differ.
    """
    if world_size() == 1:
        return fit(model, data, recipe, loss=loss, metrics=metrics, checkpoint=checkpoint, progress=progress)
    model.head.load_state_dict(from_first(lambda: _on_cpu(model.head)))
    if checkpoint is not None:
        split = split_of(data, "train_coherent")
        checkpoint = _SharedCheckpoint(checkpoint, model, *split.told_apart_by())
    if type(model) is not CNNDNN or model._forward_hooks or model._forward_pre_hooks:
        raise ValueError("on ranks a plain CNNDNN is trained, without hooks of its own: they are not on every rank.")
    part, options = DistributedCNNDNN(model), {"loss": loss, "checkpoint": checkpoint}
    metrics = {"ranks": lambda part: part.agreed(), **(metrics or {})}
    history = fit(part, data, recipe, metrics=metrics, progress=rank() == 0 and progress, **options)
    normalised_as(model, split_of(data, "train_coherent"))
    for indices, state in zip(part.assigned, _gathered(_on_cpu(part.local)), strict=True):
        few = model.local.part(indices)
        few.load_state_dict(state)
        model.local.load_part(indices, few)
    model.head.load_state_dict(part.head.state_dict())
    return history


class _SharedCheckpoint(Checkpoint):
    """The checkpoint of a single process, read and written by the first rank, with the tensors of all."""

    def read(self, model: nn.Module, recipe: dict[str, Any]) -> dict[str, Any] | None:
        return from_first(lambda: super(_SharedCheckpoint, self).read(model, recipe))

    def write(self, content: dict[str, Any]) -> None:
        parts = _gathered(content["tensors"], to_first=True)
        content = content | {"tensors": {key: piece for part in parts for key, piece in (part or {}).items()}}
        from_first(lambda: super(_SharedCheckpoint, self).write(content))


def _on_cpu(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().cpu() for key, value in module.state_dict().items()}


def _gathered(own: Any, to_first: bool = False) -> list[Any]:
    """What each rank hands in, on all ranks or on the first alone."""
    found: list[Any] = [None] * world_size()
    with _lost_ranks_are_named():
        if to_first:
            dist.gather_object(own, found if rank() == 0 else None)
        else:
            dist.all_gather_object(found, own)
    return found


@contextmanager
def _lost_ranks_are_named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"rank {rank()} of {world_size()} stops: another rank was lost, or does not answer ({error}). Started "
            "again with the same checkpoint, the training goes on from its last whole epoch (torchrun --max-restarts)."
        ) from error
