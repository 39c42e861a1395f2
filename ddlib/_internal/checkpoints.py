"""Checkpoints: all that the rest of a training depends on, after its last whole epoch."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from . import files

WRAPPERS = ("_orig_mod.", "_forward_module.")  # what torch.compile and Fabric put before the names of weights
# The weights that a training has left in a model, by digest, and its initial ones: who runs a cell again goes on.
_LEFT: "WeakKeyDictionary[nn.Module, tuple[str, str]]" = WeakKeyDictionary()


class Checkpoint:
    """The file of one training (ours): recipe, history, weights, buffers of the optimiser.

    Nothing else is random or remembered: batches and augmentation follow from the recipe's seed and the epoch, and
    so does the schedule.  Tensors are kept by local CNN, so that it does not matter how these are grouped, or which
    rank holds them.

    Args:
        inputs: what is trained on: images and labels, say.
    """

    def __init__(self, path: str | Path, model: nn.Module, *inputs: Tensor):
        self.path, self.inputs, self.initial = Path(path), files.digest(*inputs, *_windows(model)), weights(model)
        left, initial = _LEFT.get(model, ("", ""))
        if left == self.initial:
            self.initial = initial
        self.stopped = False  # before the last epoch of its recipe, as `after_epoch` asked

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: dict) -> list[dict]:
        """Go on from the last whole epoch, where there is one: model and optimiser are filled; returns the history.

        A model may have the initial weights of the training, or those that it has left: an interrupted one goes on.

        Raises:
            files.DamagedFile: the file is not what was written; it is set aside.
            ValueError: it belongs to another training.
            OSError: its folder cannot be written.
        """
        saved = self.read(model, recipe)
        if saved is None:
            return []
        self.stopped = saved["stopped"]
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

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: dict,
        history: list[dict],
        stopped: bool = False,
    ) -> None:
        """Keep the state at the end of an epoch."""
        tensors = {key: piece.cpu().clone() for key, piece in pieces(model, optimizer)}
        content = {"inputs": self.inputs, "initial": self.initial, "recipe": recipe, "history": history}
        self.write(content | {"tensors": tensors, "stopped": stopped})

    def leave(self, model: nn.Module) -> None:
        """Remember in what state the training leaves the model, at its end or interrupted."""
        _LEFT[model] = weights(model), self.initial

    def read(self, model: nn.Module, recipe: dict[str, Any]) -> dict[str, Any] | None:
        """The content of the file, where it is there and belongs to this training."""
        files.writable_folder(self.path.parent)
        if not self.path.exists():
            return None
        try:
            saved = files.load_tensors(self.path)
        except files.DamagedFile as error:
            raise files.DamagedFile(f"{error} It was set aside as {files.set_aside(self.path)}.") from None
        if "inputs" not in saved:
            raise ValueError(f"{self.path} is of an earlier version: give another file, or delete this one.")
        known = saved["recipe"]
        other = {k: (known.get(k), recipe.get(k)) for k in known | recipe if known.get(k) != recipe.get(k)}
        if other:
            reason = "its recipe has " + ", ".join(f"{k} {was!r}, not {now!r}" for k, (was, now) in other.items())
        elif saved["inputs"] != self.inputs:
            reason = "of other images, labels or windows"
        elif saved["initial"] != self.initial and not self._is_of(model, saved["tensors"]):
            reason = "of other initial weights"
        else:
            self.initial = saved["initial"]
            return saved
        raise ValueError(f"{self.path} belongs to another training: {reason}; give another file, or delete this one.")

    def _is_of(self, model: nn.Module, tensors: dict[str, Tensor]) -> bool:
        """The model has the very weights of the file."""
        return all(key in tensors and torch.equal(piece.cpu(), tensors[key]) for key, piece in pieces(model))

    def write(self, content: dict[str, Any]) -> None:
        """The file, whole or not at all."""
        files.save_tensors(self.path, content)


def pieces(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a training by its name: weights and statistics, and, after a #, the optimiser's buffers of them.

    Those of grouped networks are cut into one piece a network, as `named_networks` of the module that holds them says:
    views, to be read or filled.
    """
    grouped = [pair for module in _several(model) for pair in module.named_networks()]
    seen: set[int] = set()
    for names, network in [*grouped, ([""], model)]:
        for key, value in chain(network.named_parameters(), network.named_buffers()):
            if id(value) in seen:
                continue
            seen.add(id(value))
            for wrapper in WRAPPERS:
                key = key.replace(wrapper, "")
            buffers = optimizer.state.get(value, {}) if optimizer else {}
            for kind, tensor in {"": value, **buffers}.items():
                if tensor is not None:
                    cut = tensor.ndim and len(names) > 1  # a counter of batches or steps is the same for all
                    parts = tensor.detach().unflatten(0, (len(names), -1)) if cut else [tensor.detach()] * len(names)
                    yield from ((f"{name}{key}#{kind}", part) for name, part in zip(names, parts, strict=True))


def weights(model: nn.Module) -> str:
    """A digest of all weights and statistics."""
    return files.digest(*(piece for _, piece in sorted(pieces(model), key=lambda named: named[0])))


def _windows(model: nn.Module) -> list[Tensor]:
    return [module.get_extra_state() for module in _several(model)]


def _several(model: nn.Module) -> list[Any]:
    """The modules that hold several networks, as `LocalCNNs` does."""
    return [module for module in model.modules() if hasattr(module, "named_networks")]
