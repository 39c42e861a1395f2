"""Checkpoints: all that the rest of a training depends on, after its last whole epoch.

A file belongs to one training: its recipe and loss, images, labels and windows, layers and what of them is frozen, and
initial weights.  All are compared when a training asks for it; another one is refused, never taken for it.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from . import files

WRAPPERS = ("_orig_mod.", "_forward_module.")  # what torch.compile and Fabric put before the names of weights
# The file, the weights that a training has left in a model, and its initial ones: who runs a cell again goes on.
_LEFT: "WeakKeyDictionary[nn.Module, tuple[Path, str, str]]" = WeakKeyDictionary()


class Checkpoint:
    """The file of one training (ours): what it belongs to, history, weights, buffers of the optimiser.

    Nothing else is random or remembered: batches and augmentation follow from the recipe's seed and the epoch, and
    so does the schedule.  Tensors are kept by local CNN, so that it does not matter how these are grouped, or which
    rank holds them.

    Args:
        inputs: what is trained on: images and labels, say.

    Attributes:
        stopped: before the last epoch of the recipe, as `after_epoch` asked.
    """

    def __init__(self, path: str | Path, model: nn.Module, *inputs: Tensor):
        self.path, self.stopped, initial = Path(path).expanduser(), False, weights(model)
        file, left, before = _LEFT.get(model, (None, "", ""))
        self.belongs = {
            "images, labels or windows": files.digest(*inputs, *(m.get_extra_state() for _, m in _several(model))),
            "shapes of images or labels": files.shapes(*inputs),
            "layers, or frozen weights": files.checksum(layers(model).encode()),
            "initial weights": before if (file, left) == (self.path.resolve(), initial) else initial,
        }

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: dict) -> list[dict]:
        """Go on from the last whole epoch, where there is one: model and optimiser are filled; returns the history.

        A model may have the initial weights of the training, or those that it has left: an interrupted one goes on.

        Raises:
            files.DamagedFile: the file is not what was written; it is set aside.
            ValueError: it belongs to another training, or is a folder.
            OSError: its folder cannot be written, or the file cannot be read.
        """
        saved = self.read(model, recipe)
        if saved is None:
            return []
        self.stopped, tensors = saved["stopped"], saved["tensors"]
        kinds = {key.rpartition("#")[2] for key in tensors} - {""}
        for names, key, value in _named(model):
            for kind in kinds if value.requires_grad else ():
                if (first := tensors.get(f"{names[0]}{key}#{kind}")) is not None:
                    shape = (len(names) * first.shape[0], *first.shape[1:]) if first.ndim else ()
                    like = value if value.shape == shape else torch.empty(shape, device=value.device)
                    optimizer.state[value][kind] = torch.zeros_like(like, dtype=first.dtype)  # laid out as the weight
        with torch.no_grad():
            for key, piece in pieces(model, optimizer):
                piece.copy_(tensors[key])
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
        content = {"belongs": self.belongs, "recipe": recipe, "history": history, "stopped": stopped}
        self.write(content | {"tensors": tensors})

    def leave(self, model: nn.Module) -> None:
        """Remember in what state the training leaves the model, at its end or interrupted."""
        _LEFT[model] = self.path.resolve(), weights(model), self.belongs["initial weights"]

    def read(self, model: nn.Module, recipe: dict[str, Any]) -> dict[str, Any] | None:
        """The content of the file, where it is there and belongs to this training."""
        files.writable_folder(self.path.parent)
        if not self.path.exists():
            return None
        if self.path.is_dir():
            raise ValueError(f"checkpoint must name a file, {self.path} is a folder.")
        try:
            saved = files.load_tensors(self.path)
        except files.DamagedFile as error:
            raise files.DamagedFile(f"{error} It was set aside as {files.set_aside(self.path)}.") from None
        known, belongs = saved["recipe"], saved["belongs"]
        if not isinstance(belongs, dict):
            raise ValueError(f"{self.path} is of an earlier version: give another file, or delete this one.")
        changed = {k: (known.get(k), recipe.get(k)) for k in known | recipe if known.get(k) != recipe.get(k)}
        other = [w for w, own in self.belongs.items() if belongs.get(w, own) != own]  # earlier files lack the shapes
        if not changed and other == ["initial weights"] and self._is_of(model, saved["tensors"]):
            self.belongs, other = belongs, []
        if changed:
            reason = "its recipe has " + ", ".join(f"{k} {was!r}, not {now!r}" for k, (was, now) in changed.items())
        elif other:
            reason = f"of other {other[0]}"
        elif any(key not in saved["tensors"] for key, _ in pieces(model)):
            reason = "of other names of the windows"
        else:
            return saved
        raise ValueError(f"{self.path} belongs to another training: {reason}; give another file, or delete this one.")

    def _is_of(self, model: nn.Module, tensors: dict[str, Tensor]) -> bool:
        """The model has the very weights of the file."""
        return all(key in tensors and torch.equal(piece.cpu(), tensors[key]) for key, piece in pieces(model))

    def write(self, content: dict[str, Any]) -> None:
        """The file, whole or not at all."""
        files.save_tensors(self.path, content)


class NoCheckpoint:
    """What stands for one where none is kept."""

    stopped = False

    def load(self, *_: Any) -> list[dict]:
        return []

    def save(self, *_: Any, stopped: bool = False) -> None:
        pass

    def leave(self, model: nn.Module) -> None:
        pass


def pieces(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a training by its name: weights and statistics, and, after a #, the optimiser's buffers of them.

    Those of grouped networks are cut into one piece a network, as `named_networks` of the module that holds them says:
    views, to be read or filled.
    """
    for names, key, value in _named(model):
        buffers = optimizer.state.get(value, {}) if optimizer else {}
        for kind, tensor in {"": value, **buffers}.items():
            if isinstance(tensor, Tensor):
                cut = tensor.ndim and len(names) > 1  # a counter of batches or steps is the same for all
                parts = tensor.detach().unflatten(0, (len(names), -1)) if cut else [tensor.detach()] * len(names)
                yield from ((f"{name}{key}#{kind}", part) for name, part in zip(names, parts, strict=True))


def weights(model: nn.Module) -> str:
    """A digest of all weights and statistics."""
    return files.digest(*(piece for _, piece in sorted(pieces(model), key=lambda named: named[0])))


def layers(model: nn.Module) -> str:
    """Each layer with its settings (stride, eps, the p of a dropout), and the names of frozen weights."""
    kinds = [f"{type(m).__name__}({m.extra_repr()})" for m in model.modules() if not list(m.children())]
    return "\n".join([*kinds, *(key for _, key, value in _named(model) if not value.requires_grad)])


def _named(model: nn.Module) -> Iterator[tuple[list[str], str, Tensor]]:
    """Each parameter and buffer once: what the networks side by side in it are called, its name there, itself."""
    grouped = [
        ([f"{prefix}{name}" for name in names], network)
        for prefix, module in _several(model)
        for names, network in module.named_networks()
    ]
    seen: set[int] = set()
    for names, network in [*grouped, ([""], model)]:
        for key, value in chain(network.named_parameters(), network.named_buffers()):
            if id(value) not in seen:
                seen.add(id(value))
                yield names, _plain(key), value


def _several(model: nn.Module) -> list[tuple[str, Any]]:
    """The modules that hold several networks, as `LocalCNNs` does, and their names."""
    return [(_plain(f"{name}."), m) for name, m in model.named_modules() if hasattr(m, "named_networks")]


def _plain(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name.lstrip(".")
