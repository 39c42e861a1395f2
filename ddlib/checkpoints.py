"""Checkpoints: all that the rest of a training depends on, after its last whole epoch."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import files


class Checkpoint:
    """The file of one training (ours): recipe, history, the states of model and optimiser.

    Nothing else is random or remembered: batches and augmentation follow from the recipe's seed and the epoch, and
    so does the schedule.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: dict[str, Any]) -> list[dict[str, Any]]:
        """Go on from the last whole epoch, where there is one: model and optimiser are filled; returns the history.

        Raises:
            files.DamagedFile: the file is not what was written; it is set aside.
            ValueError: it was made by another recipe.  Other images or windows are the caller's to tell apart.
            OSError: its folder cannot be written.
        """
        saved = self.read(recipe)
        if saved is None:
            return []
        self.restore(saved, model, optimizer)
        return saved["history"]

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: dict[str, Any],
        history: list[dict[str, Any]],
    ) -> None:
        """Keep the state at the end of an epoch."""
        self.write({"recipe": recipe, "history": history, **self.state(model, optimizer)})

    def read(self, recipe: dict[str, Any]) -> dict[str, Any] | None:
        """The content of the file, held against the recipe; None where there is no file."""
        files.writable_folder(self.path.parent)
        if not self.path.exists():
            return None
        try:
            saved = files.load_tensors(self.path)
        except files.DamagedFile as error:
            raise files.DamagedFile(f"{error} It was set aside as {files.set_aside(self.path)}.") from None
        other = {k: (was, recipe[k]) for k, was in saved["recipe"].items() if was != recipe[k]}
        if other:
            told = ", ".join(f"{k} {was!r}, not {now!r}" for k, (was, now) in other.items())
            raise ValueError(f"{self.path} belongs to another training: its recipe has {told}.")
        return saved

    def write(self, content: dict[str, Any]) -> None:
        """The file, whole or not at all."""
        files.save_tensors(self.path, content)

    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """What is written of model and optimiser; `restore` puts it back."""
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    def restore(self, saved: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        lay_out(optimizer)


def lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give each buffer the place and memory format of its weight: fused optimisers walk through both side by side."""
    for p, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == p.shape and value.ndim:
                state[name] = torch.empty_like(p, dtype=value.dtype).copy_(value)
