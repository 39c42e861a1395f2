"""Checkpoints: all that the rest of a training depends on, after its last whole epoch."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import files
from .local import LocalCNNs


class Checkpoint:
    """The file of one training (ours): recipe, history, weights, buffers of the optimiser.

    Nothing else is random or remembered: batches and augmentation follow from the recipe's seed and the epoch, and
    so does the schedule.  Tensors are kept by local CNN, so that it does not matter how these are grouped, or which
    rank holds them.

    Args:
        belongs: a digest of what is trained on what: images, labels, initial weights, see `digest_of`.
    """

    def __init__(self, path: str | Path, belongs: str):
        self.path, self.belongs = Path(path), belongs

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: dict) -> list[dict]:
        """Go on from the last whole epoch, where there is one: model and optimiser are filled; returns the history.

        Raises:
            files.DamagedFile: the file is not what was written; it is set aside.
            ValueError: it belongs to another training.
            OSError: its folder cannot be written.
        """
        saved = self.read(recipe)
        if saved is None:
            return []
        kinds = {key.rpartition("#")[2] for key in saved["tensors"]} - {""}
        for p in chain.from_iterable(group["params"] for group in optimizer.param_groups) if kinds else ():
            empty = {
                kind: torch.zeros((), device=p.device) if kind == "step" else torch.zeros_like(p) for kind in kinds
            }
            optimizer.state[p] = empty
        with torch.no_grad():
            for key, piece in pieces(model, optimizer):
                piece.copy_(saved["tensors"][key])
        return saved["history"]

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: dict, history: list[dict]) -> None:
        """Keep the state at the end of an epoch."""
        tensors = {key: piece.cpu().clone() for key, piece in pieces(model, optimizer)}
        self.write({"belongs": self.belongs, "recipe": recipe, "history": history, "tensors": tensors})

    def read(self, recipe: dict[str, Any]) -> dict[str, Any] | None:
        """The content of the file, where it is there and belongs to this training."""
        files.writable_folder(self.path.parent)
        if not self.path.exists():
            return None
        try:
            saved = files.load_tensors(self.path)
        except files.DamagedFile as error:
            raise files.DamagedFile(f"{error} It was set aside as {files.set_aside(self.path)}.") from None
        other = {k: (was, recipe.get(k)) for k, was in saved["recipe"].items() if was != recipe.get(k)}
        changed = ", ".join(f"{k} {was!r}, not {now!r}" for k, (was, now) in other.items())
        if other or saved["belongs"] != self.belongs:
            reason = f"its recipe has {changed}" if other else "of other images, labels, windows or initial weights"
            raise ValueError(f"{self.path} belongs to another training: {reason}.")
        return saved

    def write(self, content: dict[str, Any]) -> None:
        """The file, whole or not at all."""
        files.save_tensors(self.path, content)


def pieces(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a training by its name: weights and statistics, and, after a #, the optimiser's buffers of them.

    Those of grouped local CNNs are cut into one piece a network, named by its window: views, to be read or filled.
    """
    grouped = [
        ([f"local CNN {local.decomposition.names[index]}, " for index in family], network)
        for local in model.modules()
        if isinstance(local, LocalCNNs)
        for family, network in zip(local.families, local.networks, strict=True)
    ]
    seen: set[int] = set()
    for names, network in [*grouped, ([""], model)]:
        for key, value in chain(network.named_parameters(), network.named_buffers()):
            if id(value) in seen:
                continue
            seen.add(id(value))
            buffers = optimizer.state.get(value, {}) if optimizer else {}
            for kind, tensor in {"": value, **buffers}.items():
                if tensor is not None:
                    cut = tensor.ndim and len(names) > 1  # a counter of batches or steps is the same for all
                    parts = tensor.detach().unflatten(0, (len(names), -1)) if cut else [tensor.detach()] * len(names)
                    yield from ((f"{name}{key}#{kind}", part) for name, part in zip(names, parts, strict=True))


def digest_of(model: nn.Module, *inputs: Tensor) -> str:
    """A digest of a model's windows and weights, and of what it is trained on."""
    windows = [m.get_extra_state() for m in model.modules() if isinstance(m, LocalCNNs)]
    ordered = sorted(pieces(model), key=lambda named: named[0])
    return files.digest(*inputs, *windows, *(piece for _, piece in ordered))
