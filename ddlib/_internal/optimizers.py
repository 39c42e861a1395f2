"""The optimiser and the learning rate of a recipe."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def make_optimizer(model: nn.Module, recipe: Any) -> torch.optim.Optimizer:
    """The optimiser of a recipe; weight decay is for weights of two or more axes alone.

    On a GPU, for weights of single precision, its rate is a tensor there, so that a CUDA graph can hold its steps.
    """
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not weights:
        raise ValueError(f"there is nothing to train: all weights of the {type(model).__name__} are frozen.")
    spared = {  # as timm's models name what is not decayed
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        if callable(getattr(module, "no_weight_decay", None))
        for name in module.no_weight_decay()
    }
    decayed = [name for name, p in weights.items() if p.ndim > 1 and name not in spared]
    groups = [
        {"params": [weights[name] for name in decayed], "weight_decay": recipe.weight_decay},
        {"params": [p for name, p in weights.items() if name not in decayed], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if callable(recipe.optimizer):
        made = recipe.optimizer(groups, recipe.rate)
        if isinstance(made, torch.optim.LBFGS):
            raise ValueError("optimizer LBFGS calls the model several times a step: take one that calls it once.")
        return made
    device, rate = next(iter(weights.values())).device, recipe.rate
    if device.type == "cuda" and all(p.dtype == torch.float32 for p in weights.values()):
        rate = torch.tensor(rate, dtype=torch.float32, device=device)
    options: dict[str, Any] = {"fused": True} if device.type in ("cuda", "cpu") else {}
    if recipe.optimizer == "sgd":
        options |= {"momentum": recipe.momentum, "nesterov": recipe.momentum > 0}
    else:
        options["capturable"] = isinstance(rate, Tensor)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    return kind(groups, rate, **options)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def obstacle_of(optimizer: torch.optim.Optimizer) -> str:
    """Why no CUDA graph can hold its steps; empty where one can."""
    if all(isinstance(group["lr"], Tensor) for group in optimizer.param_groups):
        return ""
    return "its optimiser is one's own, or its weights are not of single precision"


def schedule(kind: str | Callable[[float], float], t: float, rise: float = 0.2) -> float:
    """Learning rate as a share of its highest value, at time t of the training in [0, 1)."""
    if callable(kind):
        return kind(t)
    if kind == "constant":
        return 1.0
    if kind == "one-cycle":
        if t < rise:
            return 0.04 + 0.96 * t / rise
        t = (t - rise) / (1 - rise)
    return 0.5 * (1 + math.cos(math.pi * t))
