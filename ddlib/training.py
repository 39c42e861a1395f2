"""One training loop for the global CNN, the local CNNs together, the dense network and the coherent model.

    for epoch:  for batch:  augment → normalise → model → cross-entropy → optimiser

Everything random is drawn from `(recipe.seed, epoch)` alone: the weights do not depend on which engine trains
them, and a resumed run is the uninterrupted one.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import checks
from .allocator import memory_kept
from .backbones import Backbone
from .checkpoints import Checkpoint
from .images import ImageSet, Split, augment, memory_format, prepare
from .local import LocalCNNs, softmax
from .model import CNNDNN

if TYPE_CHECKING:
    import pandas as pd

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("one-cycle", "cosine", "constant")
PRECISIONS = ("auto", "fp32", "bf16")
DEVICES = ("auto", "cuda", "mps", "cpu")

Metrics = Mapping[str, Callable[[nn.Module], float]]


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step; the ragged end of each epoch's random order is left out.
        optimizer: "sgd" (Nesterov momentum where `momentum` > 0), "adam" or "adamw".
        rate: the highest learning rate of the schedule.
        schedule: "one-cycle" (linear rise over the first fifth, then a cosine to zero), "cosine", "constant".
        momentum: of SGD.
        weight_decay: on weights of two or more axes; biases and batch norms are not decayed.
        clip: largest gradient norm of each network, None for no clipping.
        label_smoothing: as in `torch.nn.functional.cross_entropy`.
        augment: mirror and shift the images (`augmentation.augment`).
        precision: "bf16" is autocast, "auto" is bf16 where the device computes it in hardware.
        device: "auto" is cuda, else mps, else cpu.
        seed: of the batches and the augmentation.
    """

    epochs: int = 12
    batch_size: int = 128
    optimizer: str = "sgd"
    rate: float = 0.1
    schedule: str = "one-cycle"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float | None = None
    label_smoothing: float = 0.0
    augment: bool = True
    precision: str = "auto"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("epochs", 1, None), ("batch_size", 2, None), ("seed", 0, 2**31 - 1)):
            object.__setattr__(self, name, checks.whole(name, getattr(self, name), low, high))
        checks.one_of("optimizer", self.optimizer, OPTIMIZERS)
        checks.real("rate", self.rate, 0, open_low=True)
        checks.one_of("schedule", self.schedule, SCHEDULES)
        checks.real("momentum", self.momentum, 0, 1)
        checks.real("weight_decay", self.weight_decay, 0)
        if self.clip is not None:
            checks.real("clip", self.clip, 0, open_low=True)
        checks.real("label_smoothing", self.label_smoothing, 0, 1)
        checks.flag("augment", self.augment)
        checks.one_of("precision", self.precision, PRECISIONS)
        checks.one_of("device", self.device, DEVICES)


# One recipe for each stage of an experiment.  The papers' learning rates could not be read: these are ours.
RECIPES: dict[str, Recipe] = {
    "global": Recipe(),
    "local": Recipe(),
    "dense network": Recipe(
        epochs=20, optimizer="adam", rate=1e-3, schedule="constant", weight_decay=0.0, augment=False
    ),
    "coherent": Recipe(),
    "transfer": Recipe(rate=0.02),
    "sub-networks": Recipe(),
    "channels": Recipe(),  # that of the global CNN: only the initial weights differ
}


def fit(
    model: nn.Module,
    data: ImageSet | Split,
    recipe: Recipe = RECIPES["coherent"],
    *,
    metrics: Metrics | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    progress: bool | str = True,
) -> "pd.DataFrame":
    """Train a whole model on images, in place: a CNN, all local CNNs side by side, or the coherent CNN-DNN.

    The loss is the cross-entropy, its mean over the batch; for local CNNs, logits (B, N, K), summed over the N
    networks, so that each gets the very gradient it would get alone.

    Args:
        model: maps normalised images (B, C, *shape) to logits (B, K) or (B, N, K).
        data: its training split is used, never its test split.
        metrics: functions of the model, computed after each epoch, e.g. {"test_accuracy": ...}.
        checkpoint: a file, written at the end of each epoch; where it is there already, training goes on from it.
        progress: a bar with this title; False for none.

    Returns:
        A row an epoch: epoch, loss and train_accuracy (means over the augmented batches as they were trained on,
        and over the networks), rate, seconds, and the metrics.

    Raises:
        ValueError: a batch larger than the data, a recipe that the device cannot carry out, or a checkpoint of another
            training.
        files.DamagedFile: the checkpoint is damaged; it is set aside.
    """
    split = data.train if isinstance(data, ImageSet) else data
    dtype = next(model.parameters()).dtype

    def batch(chosen: Tensor, generator: torch.Generator) -> Tensor:
        images = resident.index_select(0, chosen)
        if recipe.augment:
            images = augment(images, split.flip_axes, generator)
        x = prepare(images, split, dtype)
        return x if split.labels.ndim == 1 else x.unflatten(1, (split.labels.shape[1], -1))  # (B, N, C, *shape)

    device = choose_device(recipe.device)
    resident = split.images.to(device)
    model.to(device, memory_format=memory_format(split.images.ndim - 2))
    return _optimise(model, batch, split.labels.to(device), recipe, metrics, checkpoint, progress)


def train_aggregator(
    model: CNNDNN,
    data: ImageSet | Split,
    recipe: Recipe = RECIPES["dense network"],
    *,
    probabilities: Tensor | None = None,
    metrics: Metrics | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | str = True,
) -> "pd.DataFrame":
    """Train the dense network of a CNN-DNN alone (P2, the second step), in place.

    The local CNNs are frozen and in eval mode, so their probabilities for the training images, without
    augmentation, are computed once.

    Args:
        probabilities: these probabilities (n, N, K), where they are known already.
        metrics: functions of the dense network.
        (the others as in `fit`)
    """
    split = data.train if isinstance(data, ImageSet) else data
    device = choose_device(recipe.device)
    if probabilities is None:
        probabilities = predict(model.local.to(device), split, precision=recipe.precision)
    model.head.to(device)
    inputs = probabilities.to(device, next(model.head.parameters()).dtype)
    recipe = replace(recipe, precision="fp32")
    labels = split.labels.to(device)
    return _optimise(
        model.head, lambda chosen, _: inputs.index_select(0, chosen), labels, recipe, metrics, checkpoint, progress
    )


def predict(model: nn.Module, split: Split, *, batch_size: int = 500, precision: str = "auto") -> Tensor:
    """Class probabilities for uint8 images, in eval mode, on the model's own device.

    Returns:
        (n, K), or (n, N, K) for local CNNs; on the CPU, in at least single precision.
    """
    first = next(model.parameters())
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), autocast(first.device, precision, first.dtype), memory_kept():
            batches = (
                softmax(model(prepare(images.to(first.device), split, first.dtype))).cpu()
                for images in split.images.split(batch_size)
            )
            return torch.cat(list(batches))
    finally:
        for module, mode in modes.items():
            module.training = mode


def accuracy(probabilities: Tensor, labels: Tensor) -> float | list[float]:
    """Share of right answers in [0, 1]: a number for (n, K), one for each local CNN for (n, N, K)."""
    right = (probabilities.argmax(-1) == labels.view(-1, *(1,) * (probabilities.ndim - 2))).double().mean(0)
    return right.tolist()


# ── the loop ──────────────────────────────────────────────────────────────────────────────────────────────────


def _optimise(
    model: nn.Module,
    batch: Callable[[Tensor, torch.Generator], Tensor],
    labels: Tensor,
    recipe: Recipe,
    metrics: Metrics | None,
    checkpoint: str | Path | Checkpoint | None,
    progress: bool | str,
) -> "pd.DataFrame":
    import pandas as pd  # here, so that `import ddlib` stays quick

    device, size = labels.device, recipe.batch_size
    if size > len(labels):
        raise ValueError(f"batch_size {size} is larger than the data: {len(labels)} images.")
    steps = len(labels) // size
    optimizer = make_optimizer(model, recipe)
    cast = autocast(device, recipe.precision, next(model.parameters()).dtype)
    if isinstance(checkpoint, (str, Path)):
        checkpoint = Checkpoint(checkpoint)
    history = [] if checkpoint is None else checkpoint.load(model, optimizer, asdict(recipe))
    title = progress if isinstance(progress, str) else type(model).__name__
    wide = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no double
    with progress_bar(title, recipe.epochs * steps, len(history) * steps, bool(progress)) as bar, memory_kept():
        for epoch in range(len(history), recipe.epochs):
            start, generator = time.perf_counter(), seeded(recipe.seed, epoch)
            order = torch.randperm(len(labels), generator=generator).to(device)
            loss_sum, right = torch.zeros(2, device=device, dtype=wide)
            model.train()
            with torch.random.fork_rng():
                torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))  # for dropout, where there is any
                for step in range(steps):
                    chosen = order[step * size : (step + 1) * size]
                    for group in optimizer.param_groups:
                        group["lr"] = recipe.rate * _schedule(recipe.schedule, (epoch + step / steps) / recipe.epochs)
                    inputs, targets = batch(chosen, generator), labels[chosen]
                    with cast:
                        logits = model(inputs)
                    loss = cross_entropy(logits, targets, recipe.label_smoothing)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    if recipe.clip is not None:
                        clip_gradients(model, recipe.clip)
                    optimizer.step()
                    networks = logits.numel() // (len(targets) * logits.shape[-1])
                    loss_sum += loss.detach() / networks
                    right += (logits.detach().argmax(-1).view(size, -1) == targets.view(size, -1)).to(wide).mean()
                    bar.update()
            row = {"epoch": epoch + 1, "loss": loss_sum.item() / steps, "train_accuracy": right.item() / steps}
            row |= {"rate": optimizer.param_groups[0]["lr"], "seconds": time.perf_counter() - start}
            row |= {name: float(metric(model)) for name, metric in (metrics or {}).items()}
            history.append(row)
            bar.set_postfix(epoch=epoch + 1, loss=f"{row['loss']:.3f}", accuracy=f"{row['train_accuracy']:.1%}")
            if checkpoint is not None:
                checkpoint.save(model, optimizer, asdict(recipe), history)
    return pd.DataFrame(history)


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean over the batch, sum over networks: (B, K) or (B, N, K) logits, (B,) or (B, N) labels → a scalar.

    A mean over networks would divide every local gradient by N.
    """
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    networks = logits.numel() // (len(labels) * logits.shape[-1])
    each = labels.view(len(labels), -1).expand(-1, networks).reshape(-1)
    return networks * F.cross_entropy(logits.reshape(len(each), -1), each, label_smoothing=label_smoothing)


def clip_gradients(model: nn.Module, most: float) -> None:
    """Scale the gradient of each network so that its norm is at most `most`.

    Local CNNs are clipped one by one, also where they share a grouped module; any other model as a whole.
    """
    networks = list(model.networks) if isinstance(model, LocalCNNs) else [model]
    for network in networks:
        groups = network.groups if isinstance(network, Backbone) else 1
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        apart = [g.unflatten(0, (groups, -1)) if g.ndim else g.view(1, 1) for g in gradients]
        norm = torch.stack([g.flatten(1).square().sum(1) for g in apart]).sum(0).sqrt()  # (groups,)
        scale = (most / (norm + 1e-6)).clamp(max=1)
        for g in apart:
            g.mul_(scale.view(-1, *(1,) * (g.ndim - 1)))


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = {"fused": True} if weights[0].device.type in ("cuda", "cpu") else {}
    if recipe.optimizer == "sgd":
        nesterov = recipe.momentum > 0
        return torch.optim.SGD(groups, recipe.rate, momentum=recipe.momentum, nesterov=nesterov, **fused)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    return kind(groups, recipe.rate, **fused)


def _schedule(kind: str, t: float, rise: float = 0.2) -> float:
    """Learning rate as a share of its highest value, at time t of the training in [0, 1)."""
    if kind == "constant":
        return 1.0
    if kind == "one-cycle":
        if t < rise:
            return 0.04 + 0.96 * t / rise
        t = (t - rise) / (1 - rise)
    return 0.5 * (1 + math.cos(math.pi * t))


# ── device, precision, randomness ─────────────────────────────────────────────────────────────────────────────


def choose_device(name: str = "auto") -> torch.device:
    """The device of a recipe; "auto" is cuda, else mps, else cpu."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if checks.one_of("device", name, DEVICES) == "auto":
        name = next(kind for kind, present in there.items() if present)
    if not there[name]:
        raise ValueError(f"device {name!r} is not there; present: {', '.join(k for k, v in there.items() if v)}.")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> str:
    """ "fp32" or "bf16"; "auto" is bf16 where the device computes it in hardware.

    Raises:
        ValueError: bf16 is asked of a device that does not support it.
    """
    supported = {"cuda": torch.cuda.is_bf16_supported, "cpu": lambda: True}.get(device.type, lambda: False)()
    if checks.one_of("precision", name, PRECISIONS) == "auto":
        return "bf16" if supported and _bf16_is_fast(device) else "fp32"
    if name == "bf16" and not supported:
        raise ValueError(f"precision 'bf16' is not supported on device {device.type!r}; allowed: 'auto', 'fp32'.")
    return name


def _bf16_is_fast(device: torch.device) -> bool:
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return torch.cuda.get_device_capability(device)[0] >= 8


def autocast(device: torch.device, precision: str, dtype: torch.dtype) -> torch.autocast:
    """A context with bf16 computing, where `precision` says so and the weights are fp32.

    Enter it anew for each step: inside, autocast keeps bf16 copies of the weights.
    """
    bf16 = choose_precision(precision, device) == "bf16" and dtype == torch.float32
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def seeded(*entropy: int) -> torch.Generator:
    """A CPU generator from a few whole numbers, the same on every machine."""
    mixed = 0
    for number in entropy:
        mixed = (mixed * 1_000_003 + number + 0x9E3779B9) % 2**63
    return torch.Generator().manual_seed(mixed)


def progress_bar(title: str, total: int | None, done: int = 0, shown: bool = True, **options: Any):
    """A tqdm bar that goes when it ends; silent with `shown=False` or the environment variable DDLIB_PROGRESS=0.

    In a notebook it goes to stdout: what comes on stderr is set on red there, and leaves an empty line behind.
    `options` are tqdm's own.
    """
    from tqdm import tqdm

    quiet = not shown or os.environ.get("DDLIB_PROGRESS") == "0"
    file = sys.stdout if "ipykernel" in sys.modules else sys.stderr
    chosen = {"disable": quiet, "leave": False, "mininterval": 0.5, "file": file} | options
    return tqdm(total=total, initial=done, desc=title, **chosen)
