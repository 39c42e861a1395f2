"""What the training loop does on the side."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoints import layers


class Tables:
    """Tables of an epoch on one device, a row a step: `take` gives the rows of the next step."""

    def __init__(self, device: torch.device):
        self.row, self.tables = torch.zeros(1, dtype=torch.int64, device=device), []

    def fill(self, *tables: Tensor) -> None:
        """Those of the next epoch in the place of the last ones, where a graph reads them."""
        self.row.zero_()
        self.tables = self.tables or [torch.empty_like(table, device=self.row.device) for table in tables]
        for own, table in zip(self.tables, tables, strict=True):
            own.copy_(table)

    def take(self) -> list[Tensor]:
        rows = [table.index_select(0, self.row)[0] for table in self.tables]
        self.row += 1
        return rows


class Rows:
    """Batches of what is known already, (n, ...) on the device, as `images.Batches` gives them of images."""

    obstacle = ""

    def __init__(self, known: Tensor):
        self.known, self.place = known, known.device

    def draw(self, *_: Any) -> list[Tensor]:
        return []

    def __call__(self, indices: Tensor) -> Tensor:
        return self.known.index_select(0, indices)


def frozen_parts(model: nn.Module) -> list[nn.Module]:
    """Parts that are in eval mode and have weights or statistics, all frozen: they stay in eval mode."""
    held = [(m, [*m.parameters(), *m.buffers()]) for m in model.modules() if not m.training]
    return [m for m, own in held if own and not any(tensor.requires_grad for tensor in own)]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """The model is in eval mode; then each of its parts is again in its own, as a frozen one may differ."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def enough_memory(batch_size: int, device: torch.device) -> Iterator[None]:
    """Where it is not, a RuntimeError says what to try."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        message = f"batch_size {batch_size} does not fit into the memory of {device.type}"
        raise RuntimeError(f"{message}: take a smaller one, or engine='loop' for local CNNs.") from error


class Diverged(FloatingPointError):
    """A training whose loss is no number any more; the message says when, and what to try."""

    @classmethod
    def of(cls, title: str, epoch: int, loss: float, history: list[dict[str, Any]], recipe: Any) -> "Diverged":
        before = f"; after epoch {epoch} it was {history[-1]['loss']:.3g}" if history else ""
        return cls(
            f"the training of {title} diverged: the loss of epoch {epoch + 1} is {loss}{before}. Try a rate below "
            f'{recipe.rate:g}, a longer rise, or precision="fp32".'
        )


def frozen_into_a_graph(model: nn.Module) -> str:
    """What a CUDA graph keeps as it was at its capture: settings, numbers that modules have, places in memory."""
    plain = [{k: v for k, v in vars(m).items() if isinstance(v, bool | int | float | str)} for m in model.modules()]
    return f"{layers(model)} {plain} {[t.data_ptr() for t in chain(model.parameters(), model.buffers())]}"


def obstacle_in(model: nn.Module) -> str:
    """Why a CUDA graph cannot hold the model; empty where nothing is known."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return "ranks exchange probabilities in it"
    if any(hasattr(module, "_orig_mod") for module in model.modules()):
        return "it is compiled, and may have graphs of its own"
    kinds = [f"_{when}_hooks" for when in ("forward", "forward_pre", "backward", "backward_pre")]
    kinds.append("_post_accumulate_grad_hooks")
    hooked = [thing for thing in (*model.modules(), *model.parameters()) if any(getattr(thing, k, 0) for k in kinds)]
    return f"hooks of the {type(hooked[0]).__name__} would not be called" if hooked else ""
