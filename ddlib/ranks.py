"""The coherent model over many processes: each rank holds some subdomains and a copy of the dense network.

    torchrun --standalone --nproc-per-node 2 -m ddlib coherent --config docs/coherent_digits.yaml

All ranks see the same batches and draw the same random numbers.  Only the local probabilities travel, N·K numbers a
sample; gradients stay where they are: the head and the loss are computed on every rank, from the same probabilities,
so that each rank has the whole gradient of its own local CNNs, and all have the same one of the dense network.
"""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import checks, files
from .checkpoints import Checkpoint, lay_out
from .images import ImageSet, Split
from .local import LocalCNNs
from .model import CNNDNN
from .training import RECIPES, Metrics, Recipe, fit, make_optimizer

if TYPE_CHECKING:
    import pandas as pd


def count() -> int:
    """How many ranks there are; 1 outside `ranks`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one, from 0."""
    return dist.get_rank() if count() > 1 else 0


def share(subdomains: int, ranks: int, rank: int) -> list[int]:
    """The subdomains of a rank: consecutive ones, as many as others have, or one more.

    Raises:
        ValueError: there are fewer subdomains than ranks.
    """
    checks.whole("ranks", ranks, 1)
    if ranks > subdomains:
        raise ValueError(f"{ranks} ranks cannot share {subdomains} subdomains; at most one rank for each.")
    size, rest = divmod(subdomains, ranks)
    start = rank * size + min(rank, rest)
    return list(range(start, start + size + (rank < rest)))


@contextmanager
def ranks(timeout: float = 600) -> Iterator[int]:
    """Join the process group that torchrun describes in the environment, and leave it; yields this rank.

    gloo carries tensors of CPUs, nccl those of GPUs; each rank takes the GPU of its LOCAL_RANK.  Without torchrun
    there is one rank and no group.

    Args:
        timeout: seconds after which a rank that does not answer is given up; one that dies is noticed at once.

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
    store, own, count = next(dist.rendezvous("env://", timeout=wait))
    if os.environ.get("GROUP_WORLD_SIZE") == "1":  # torchrun keeps the store over restarts, with stale addresses
        store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(backend, store=store, rank=own, world_size=count, timeout=wait)
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def from_first(make: Callable[[], Any]) -> Any:
    """What `make` returns on the first rank, given to all; the others wait, as long as it takes."""
    if count() == 1:
        return make()
    told: list[Any] = [None, None]
    with _lost_ranks_are_named():
        patient = dist.new_group(backend="gloo", timeout=timedelta(days=365))
    if rank() == 0:
        try:
            told = [make(), None]
        except Exception as error:
            told = [None, error]
    with _lost_ranks_are_named():
        dist.broadcast_object_list(told, 0, patient)
        dist.destroy_process_group(patient)
    if told[1] is not None:
        raise told[1]
    return told[0]


class Share(nn.Module):
    """One rank's share of a coherent model: its local CNNs, and a copy of the dense network.

    Attributes:
        indices: the subdomains of this rank.
        sent: bytes of probabilities that this rank has sent in training, as a ring sends them: what it has of its
            own and what it passes on, to each of the others once.
    """

    def __init__(self, whole: CNNDNN):
        super().__init__()
        self.number, self.ranks = len(whole.local), count()
        self.shares = [share(self.number, self.ranks, r) for r in range(self.ranks)]
        self.indices = self.shares[rank()]
        self.local, self.head = whole.local.part(self.indices), copy.deepcopy(whole.head)
        self.sent = 0

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, *image_shape) → logits (B, K), the same on every rank."""
        return self.head(self.gather(self.local.probabilities(x)))

    def gather(self, own: Tensor) -> Tensor:
        """The rank's own probabilities (B, n, K) → those of all (B, N, K).

        The tensors of the others are constants: through `all_gather` with autograd every rank would add its own copy
        of the loss, and local gradients would be `ranks` times too large.
        """
        if self.ranks == 1:
            return own
        most = max(map(len, self.shares))
        padded = own.new_zeros(len(own), most, own.shape[2])
        padded[:, : own.shape[1]] = own.detach()
        parts = [torch.empty_like(padded) for _ in range(self.ranks)]
        with _lost_ranks_are_named():
            dist.all_gather(parts, padded)
        if self.training:
            self.sent += (self.ranks - 1) * padded.numel() * padded.element_size()
        parts = [part[:, : len(held)] for part, held in zip(parts, self.shares, strict=True)]
        parts[rank()] = own
        return torch.cat(parts, 1)

    def epoch_sent(self) -> int:
        """Bytes sent since the last call.

        Raises:
            RuntimeError: the copies of the dense network have drifted apart.
        """
        if self.ranks > 1:
            weights = [p.detach().cpu().flatten() for p in self.head.state_dict().values()]
            found = _gathered(files.checksum(torch.cat(weights).numpy().tobytes()))
            if len(set(found)) > 1:
                told = ", ".join(f"{r}: {one[:8]}" for r, one in enumerate(found))
                raise RuntimeError(
                    f"the copies of the dense network differ between ranks ({told}). All ranks need the same kind of "
                    "processor, the same versions and the same number of threads."
                )
        sent, self.sent = self.sent, 0
        return sent


def train_coherent(
    model: CNNDNN,
    data: ImageSet | Split,
    recipe: Recipe = RECIPES["coherent"],
    *,
    metrics: Metrics | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | str = True,
) -> "pd.DataFrame":
    """`fit` for the coherent model (P1) on all ranks: called by each, with the same model, which it trains in place.

    The same mathematics as in one process, and the same checkpoint, written by the first rank: either can go on where
    the other has stopped.  The history has two columns more: ranks, and sent, bytes that the first rank sent.

    Raises:
        ValueError: as `fit`; more ranks than subdomains; a recipe that clips, which would need the norms of all ranks.
        RuntimeError: a rank was lost, or the copies of the dense network differ.
    """
    if count() == 1:
        return fit(model, data, recipe, metrics=metrics, checkpoint=checkpoint, progress=progress)
    if recipe.clip is not None:
        raise ValueError(f"clip needs the gradients of all ranks, which do not travel, got {recipe.clip}; use None.")
    model.head.load_state_dict(from_first(lambda: _on_cpu(model.head.state_dict())))
    part = Share(model)
    counted = {"ranks": lambda part: part.ranks, "sent": lambda part: part.epoch_sent(), **(metrics or {})}
    shared = None if checkpoint is None else _SharedCheckpoint(checkpoint, model, recipe)
    history = fit(part, data, recipe, metrics=counted, checkpoint=shared, progress=rank() == 0 and progress)
    model.to(next(part.parameters()).device)
    for indices, state in zip(part.shares, _gathered(_on_cpu(part.local.state_dict())), strict=True):
        _put(model.local, indices, state)
    model.head.load_state_dict(part.head.state_dict())
    return history


class _SharedCheckpoint(Checkpoint):
    """The checkpoint of a single process, read and written by the first rank.

    Buffers of an optimiser are shaped like the weights: they are taken apart and put together as local CNNs.
    """

    def __init__(self, path: str | Path, whole: CNNDNN, recipe: Recipe):
        super().__init__(path)
        self.whole = copy.deepcopy(whole).cpu()
        self.optimizer = make_optimizer(self.whole, recipe)  # as a single process would have it

    def read(self, recipe: dict[str, Any]) -> dict[str, Any] | None:
        return from_first(lambda: super(_SharedCheckpoint, self).read(recipe))

    def write(self, content: dict[str, Any]) -> None:
        from_first(lambda: super(_SharedCheckpoint, self).write(content))

    def state(self, model: Share, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        own = [_on_cpu(optimizer.state[p]) for p in model.local.parameters()]
        shares = _gathered((_on_cpu(model.local.state_dict()), own), to_first=True)
        if rank() != 0:
            return {}
        whole, kinds = self.whole, _shaped(own)
        buffers = {kind: copy.deepcopy(whole.local) for kind in kinds}
        for indices, (weights, states) in zip(model.shares, shares, strict=True):
            _put(whole.local, indices, weights)
            for kind, shell in buffers.items():
                shell.load_part(indices, _filled(shell.part(indices), [state[kind] for state in states]))
        whole.head.load_state_dict(model.head.state_dict())
        for p, *values in zip(*(m.parameters() for m in (whole.local, *buffers.values())), strict=True):
            self.optimizer.state[p] = _on_cpu(own[0]) | {k: v.detach() for k, v in zip(kinds, values, strict=True)}
        for p, held in zip(whole.head.parameters(), model.head.parameters(), strict=True):
            self.optimizer.state[p] = _on_cpu(optimizer.state[held])
        for mine, used in zip(self.optimizer.param_groups, optimizer.param_groups, strict=True):
            mine["lr"] = used["lr"]
        return super().state(whole, self.optimizer)

    def restore(self, saved: dict[str, Any], model: Share, optimizer: torch.optim.Optimizer) -> None:
        whole = self.whole
        super().restore(saved, whole, self.optimizer)
        states = [self.optimizer.state[p] for p in whole.local.parameters()]
        model.local.load_state_dict(whole.local.part(model.indices).state_dict())
        model.head.load_state_dict(whole.head.state_dict())
        kinds = _shaped(states)
        shells = [_filled(copy.deepcopy(whole.local), [state[kind] for state in states]) for kind in kinds]
        parts = [shell.part(model.indices) for shell in shells]
        for p, *values in zip(*(m.parameters() for m in (model.local, *parts)), strict=True):
            optimizer.state[p] = _on(p.device, states[0] | {k: v.detach() for k, v in zip(kinds, values, strict=True)})
        for p, held in zip(model.head.parameters(), whole.head.parameters(), strict=True):
            optimizer.state[p] = _on(p.device, self.optimizer.state[held])
        lay_out(optimizer)


def _put(local: LocalCNNs, indices: Sequence[int], state: dict[str, Tensor]) -> None:
    part = local.part(indices)
    part.load_state_dict(state)
    local.load_part(indices, part)


def _filled(local: LocalCNNs, values: Sequence[Tensor]) -> LocalCNNs:
    """Local CNNs with these tensors for their parameters."""
    with torch.no_grad():
        for p, value in zip(local.parameters(), values, strict=True):
            p.copy_(value)
    return local


def _shaped(states: Sequence[dict[str, Any]]) -> list[str]:
    """The entries of an optimiser's state that are shaped like the weights."""
    return sorted(
        {kind for state in states for kind, value in state.items() if isinstance(value, Tensor) and value.ndim}
    )


def _on(device: torch.device | str, state: dict[str, Any]) -> dict[str, Any]:
    return {k: v.detach().to(device, copy=True) if isinstance(v, Tensor) else v for k, v in state.items()}


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    return _on("cpu", state)


def _gathered(own: Any, to_first: bool = False) -> list[Any]:
    """What each rank hands in, on all ranks or on the first alone."""
    found: list[Any] = [None] * count()
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
            f"rank {rank()} of {count()} stops: another rank was lost, or does not answer ({error}). Started again "
            "with the same checkpoint, the training goes on from its last whole epoch (torchrun --max-restarts)."
        ) from error
