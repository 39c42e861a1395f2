"""One training loop for the global CNN, the local CNNs together, the dense network and the coherent model.

    for epoch:  for batch:  augment → normalise → model → cross-entropy → optimiser

Everything random is drawn from `(recipe.seed, epoch)` alone: the weights do not depend on which engine trains
them, and a resumed run is the uninterrupted one.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import checks
from .checkpoints import Checkpoint, digest_of
from .devices import DEVICES, PRECISIONS, autocast, choose_device, memory_free, seeded
from .files import SHARE
from .images import ImageSet, Split, draw_moves, memory_format, move, prepare
from .local import softmax
from .model import CNNDNN

if TYPE_CHECKING:
    import pandas as pd

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("one-cycle", "cosine", "constant")

Metrics = Mapping[str, Callable[[nn.Module], float]]
# indices of images (steps, B) → what the model sees of them, step by step
Batches = Callable[[Tensor, torch.Generator], Iterator[Tensor]]


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
        augment: mirror and shift the images (`images.augment`).
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
    augment: bool = True
    precision: str = "auto"
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("epochs", 1, None), ("batch_size", 2, None), ("seed", 0, 2**31 - 1)):
            object.__setattr__(self, name, checks.whole(name, getattr(self, name), low, high))
        named = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "precision": PRECISIONS, "device": DEVICES}
        for name, allowed in named.items():
            checks.one_of(name, getattr(self, name), allowed)
        checks.real("rate", self.rate, 0, open_low=True)
        checks.real("momentum", self.momentum, 0, 1)
        checks.real("weight_decay", self.weight_decay, 0)
        checks.flag("augment", self.augment)


# One recipe for each stage of an experiment.  The papers' learning rates could not be read: these are ours.
RECIPES: dict[str, Recipe] = {
    "global": Recipe(),
    "local": Recipe(),
    "dense network": Recipe(20, optimizer="adam", rate=1e-3, schedule="constant", weight_decay=0.0, augment=False),
    "correction": Recipe(20, optimizer="adam", rate=1e-3, schedule="constant", weight_decay=0.0, augment=False),
    "coherent": Recipe(),
    "transfer": Recipe(rate=0.02),
    "sub-networks": Recipe(),
    "channels": Recipe(),  # that of the global CNN: only the initial weights differ
}


def trains(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates what trains: gradients are on inside, whatever the caller has switched off."""
    return torch.inference_mode(False)(torch.enable_grad()(function))


@trains
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
        ValueError: a batch larger than the data, a recipe that the device cannot carry out, nothing to train, or a
            checkpoint of another training.
        files.DamagedFile: the checkpoint is damaged; it is set aside.
        RuntimeError: a step does not fit into the memory of the device.
    """
    split = data.train if isinstance(data, ImageSet) else data
    device, dtype = choose_device(recipe.device), next(model.parameters()).dtype
    if isinstance(checkpoint, str | Path):
        checkpoint = Checkpoint(checkpoint, digest_of(model, split.images, split.labels))
    fits = device.type != "cuda" or split.images.nbytes <= SHARE * memory_free(device)
    place = device if fits else torch.device("cpu")  # of the images; where they do not fit, each batch is sent
    here = replace(split, **{name: getattr(split, name).to(device) for name in ("labels", "mean", "std")})
    images_there = split.images.to(place)
    model.to(device, memory_format=memory_format(split.images.ndim - 2))

    def batches(chosen: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        if recipe.augment:
            moves = draw_moves(*chosen.shape, split.images.shape[2:], split.flip_axes, generator)
            shifts, mirrored = (drawn.to(device) for drawn in moves)
        for step, indices in enumerate(chosen.to(place)):
            images = images_there.index_select(0, indices)
            images = images if fits else images.pin_memory().to(device, non_blocking=True)
            if recipe.augment:
                images = move(images, shifts[step], mirrored[step])
            x = prepare(images, here, dtype)
            yield x if here.labels.ndim == 1 else x.unflatten(1, (here.labels.shape[1], -1))  # (B, N, C, *shape)

    return _optimise(model, batches, here.labels, recipe, metrics, checkpoint, progress)


@trains
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
    if checkpoint is not None:
        checkpoint = Checkpoint(checkpoint, digest_of(model, split.images, split.labels))
    if probabilities is None:
        probabilities = predict(model.local.to(device), split, precision=recipe.precision)
    inputs = probabilities.to(device, next(model.head.to(device).parameters()).dtype)
    labels, recipe = split.labels.to(device), replace(recipe, precision="fp32")
    batches: Batches = lambda chosen, _: (inputs.index_select(0, indices) for indices in chosen)  # noqa: E731
    return _optimise(model.head, batches, labels, recipe, metrics, checkpoint, progress)


def predict(model: nn.Module, split: Split, *, batch_size: int = 500, precision: str = "auto") -> Tensor:
    """Class probabilities for uint8 images, in eval mode, on the model's own device.

    Returns:
        (n, K), or (n, N, K) for local CNNs; on the CPU, in at least single precision.
    """
    first = next(model.parameters())
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), autocast(first.device, precision, first.dtype):
            batches = (prepare(x.to(first.device), split, first.dtype) for x in split.images.split(batch_size))
            return torch.cat([softmax(model(x)).cpu() for x in batches])
    finally:
        for module, mode in modes.items():
            module.training = mode


def accuracy(probabilities: Tensor, labels: Tensor) -> float | list[float]:
    """Share of right answers in [0, 1]: a number for (n, K), one for each local CNN for (n, N, K)."""
    right = (probabilities.argmax(-1) == labels.view(-1, *(1,) * (probabilities.ndim - 2))).double().mean(0)
    return right.tolist()


# ── the loop ──────────────────────────────────────────────────────────────────────────────────────────────────

_RANDOM = RLock()  # PyTorch's random state is one for all threads: they take turns, an epoch each


def _optimise(
    model: nn.Module,
    batches: Batches,
    labels: Tensor,
    recipe: Recipe,
    metrics: Metrics | None,
    checkpoint: Checkpoint | None,
    progress: bool | str,
) -> "pd.DataFrame":
    import pandas as pd  # here, so that `import ddlib` stays quick

    if recipe.batch_size > len(labels):
        raise ValueError(f"batch_size {recipe.batch_size} is larger than the data: {len(labels)} images.")
    steps, optimizer = len(labels) // recipe.batch_size, make_optimizer(model, recipe)
    history = [] if checkpoint is None else checkpoint.load(model, optimizer, asdict(recipe))
    title = progress if isinstance(progress, str) else type(model).__name__
    with progress_bar(title, recipe.epochs * steps, len(history) * steps, bool(progress)) as bar:
        for epoch in range(len(history), recipe.epochs):
            start = time.perf_counter()
            model.train()
            try:
                with _RANDOM, torch.random.fork_rng():
                    loss, right = _epoch(model, optimizer, batches, labels, recipe, epoch, bar.update)
            except torch.OutOfMemoryError as error:
                told = f"batch_size {recipe.batch_size} does not fit into the memory of {labels.device.type}"
                raise RuntimeError(f"{told}: take a smaller one, or engine='loop' for local CNNs.") from error
            row = {"epoch": epoch + 1, "loss": loss, "train_accuracy": right, "rate": optimizer.param_groups[0]["lr"]}
            row |= {"seconds": time.perf_counter() - start}
            row |= {name: float(metric(model)) for name, metric in (metrics or {}).items()}
            history.append(row)
            bar.set_postfix(epoch=epoch + 1, loss=f"{loss:.3f}", accuracy=f"{right:.1%}")
            if checkpoint is not None:
                checkpoint.save(model, optimizer, asdict(recipe), history)
    return pd.DataFrame(history)


def _epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    labels: Tensor,
    recipe: Recipe,
    epoch: int,
    after_step: Callable[[], object],
) -> tuple[float, float]:
    """One pass over the images, in an order of its own: mean loss and training accuracy, over networks too."""
    device, size = labels.device, recipe.batch_size
    steps, generator = len(labels) // size, seeded(recipe.seed, epoch)
    order = torch.randperm(len(labels), generator=generator, device="cpu").to(device)
    torch.manual_seed(int(torch.randint(2**31, (), generator=generator, device="cpu")))  # for dropout, if there is any
    cast = autocast(device, recipe.precision, next(model.parameters()).dtype)
    wide = torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no double
    loss_sum, right = torch.zeros(2, device=device, dtype=wide)  # read once, after the last step
    chosen = order[: steps * size].view(steps, size)
    for step, inputs in enumerate(batches(chosen, generator)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * _schedule(recipe.schedule, (epoch + step / steps) / recipe.epochs)
        targets = labels[chosen[step]]
        with cast:
            logits = model(inputs)
        loss = cross_entropy(logits, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach() / (logits.numel() // (size * logits.shape[-1]))  # the mean over networks
        right += (logits.detach().argmax(-1).view(size, -1) == targets.view(size, -1)).to(wide).mean()
        after_step()
    return loss_sum.item() / steps, right.item() / steps


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch, sum over networks: (B, K) or (B, N, K) logits, (B,) or (B, N) labels → a scalar.

    A mean over networks would divide every local gradient by N.
    """
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    networks = logits.numel() // (len(labels) * logits.shape[-1])
    each = labels.view(len(labels), -1).expand(-1, networks).reshape(-1)
    return networks * F.cross_entropy(logits.reshape(len(each), -1), each)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser of a recipe; weight decay is for weights of two or more axes alone."""
    weights = [p for p in model.parameters() if p.requires_grad]
    if not weights:
        raise ValueError(f"there is nothing to train: all weights of the {type(model).__name__} are frozen.")
    groups = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    options = {"fused": True} if weights[0].device.type in ("cuda", "cpu") else {}
    if recipe.optimizer == "sgd":
        options |= {"momentum": recipe.momentum, "nesterov": recipe.momentum > 0}
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    return kind(groups, recipe.rate, **options)


def _schedule(kind: str, t: float, rise: float = 0.2) -> float:
    """Learning rate as a share of its highest value, at time t of the training in [0, 1)."""
    if kind == "constant":
        return 1.0
    if kind == "one-cycle":
        if t < rise:
            return 0.04 + 0.96 * t / rise
        t = (t - rise) / (1 - rise)
    return 0.5 * (1 + math.cos(math.pi * t))


def progress_bar(title: str, total: int | None, done: int = 0, shown: bool = True, **options: Any):
    """A tqdm bar that goes when it ends; silent with `shown=False` or the environment variable DDLIB_PROGRESS=0."""
    from tqdm import tqdm

    quiet = not shown or os.environ.get("DDLIB_PROGRESS") == "0"
    file = sys.stdout if "ipykernel" in sys.modules else sys.stderr  # a notebook sets stderr on red
    chosen = {"disable": quiet, "leave": False, "mininterval": 0.5, "file": file} | options
    return tqdm(total=total, initial=done, desc=title, **chosen)
