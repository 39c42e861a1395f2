"""One training loop for the global CNN, the local CNNs together, the dense network and the coherent model.

    for epoch:  for batch:  augment → normalise → model → loss → optimiser

Everything random is drawn from `(recipe.seed, epoch)` alone: the weights do not depend on which engine trains
them, and a resumed run is the uninterrupted one.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ._internal import checks
from ._internal.checkpoints import Checkpoint, NoCheckpoint
from ._internal.devices import PRECISIONS, autocast, check_device, choose_device, keep_memory, seeded
from ._internal.graphs import Step
from ._internal.loop import Diverged, Rows, Tables, enough_memory, eval_mode, frozen_parts
from ._internal.losses import Loss, at_least_single, cross_entropy, over_networks, scalar
from ._internal.optimizers import make_optimizer, obstacle_of, schedule, set_rate
from ._internal.progress import progress_bar
from .images import Batches, ImageSet, Split, memory_format, normalised_as, prepare, split_of, split_to_predict
from .local import softmax
from .model import CNNDNN

if TYPE_CHECKING:
    import pandas as pd

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("one-cycle", "cosine", "constant")
COLUMNS = ("epoch", "loss", "train_accuracy", "rate", "seconds")  # of a history

Metrics = Mapping[str, Callable[[nn.Module], float]]


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step; the ragged end of each epoch's random order is left out.
        optimizer: "sgd" (Nesterov momentum where `momentum` > 0), "adam", "adamw", or a callable of groups of
            parameters (dicts with "params" and "weight_decay") and the rate that returns one of torch's.
        rate: the highest learning rate of the schedule.
        schedule: "one-cycle" (linear rise over the first fifth, then a cosine to zero), "cosine", "constant", or a
            callable: the share of the training that is done, in [0, 1), → the share of the rate.
        momentum: of SGD.
        weight_decay: on weights of two or more axes; biases, batch norms and what a module's `no_weight_decay()` names
            are not decayed.
        augment: mirror and shift the images (`images.augment`); or a callable of uint8 images (B, C, *shape), on the
            device, and a `torch.Generator` that returns as many of their kind.
        precision: "bf16" is autocast, "auto" is bf16 where the device computes it in hardware.
        device: "auto" is where the model is, if that is a GPU, else cuda, else mps, else cpu; or "cuda:1", say, or a
            `torch.device`.
        seed: of the batches and the augmentation.
    """

    epochs: int = 12
    batch_size: int = 128
    optimizer: str | Callable[..., torch.optim.Optimizer] = "sgd"
    rate: float = 0.1
    schedule: str | Callable[[float], float] = "one-cycle"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    augment: bool | Callable[[Tensor, torch.Generator], Tensor] = True
    precision: str = "auto"
    device: str | torch.device = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {"device": check_device(self.device)}
        for name, low, high in (("epochs", 1, None), ("batch_size", 2, None), ("seed", 0, 2**31 - 1)):
            checked[name] = checks.integer(name, getattr(self, name), low, high)
        for name, allowed in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS)):
            given = getattr(self, name)
            checked[name] = given if callable(given) else checks.one_of(name, given, allowed)
        checked["rate"] = checks.real("rate", self.rate, 0, open_low=True)
        checked["momentum"] = checks.real("momentum", self.momentum, 0, 1)
        checked["weight_decay"] = checks.real("weight_decay", self.weight_decay, 0)
        checked["augment"] = self.augment if callable(self.augment) else checks.flag("augment", self.augment)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def described(self) -> dict[str, Any]:
        """Its values as a file can keep them: a callable by its qualified name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: checks.print_of(value) if callable(value) else value for name, value in values.items()}


# One recipe for each training.  The papers' learning rates could not be read: these are ours.
DENSE = Recipe(20, optimizer="adam", rate=1e-3, schedule="constant", weight_decay=0.0, augment=False)
RECIPES: dict[str, Recipe] = {
    "global": Recipe(),
    "local": Recipe(),
    "dense network": DENSE,
    "correction": DENSE,
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
    loss: Loss | None = None,
    metrics: Metrics | None = None,
    after_epoch: Callable[[dict[str, float]], Any] | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    progress: bool | str = True,
) -> "pd.DataFrame":
    """Train a whole model on images, in place: a CNN, all local CNNs side by side, or the coherent CNN-DNN.

    The loss is the cross-entropy, its mean over the batch; for local CNNs, logits (B, N, K), summed over the N
    networks, so that each gets the very gradient it would get alone.

    Args:
        model: maps normalised images (B, C, *shape) to logits (B, K) or (B, N, K); it stays on its device.
        data: its training split is used, never its test split.
        loss: another loss, of logits (B, K) and labels (B,): a scalar, the mean over the batch.
        metrics: functions of the model, computed after each epoch, e.g. {"test_accuracy": ...}.
        after_epoch: called with the row of the history after each epoch, for a logger, say; True stops the training.
        checkpoint: a file, written at the end of each epoch; where it is there already, training goes on from it.
        progress: a bar with this title; False for none.

    Returns:
        A row an epoch: epoch, loss and train_accuracy (means over the augmented batches as they were trained on,
        and over the networks), rate, seconds, and the metrics.

    Raises:
        ValueError: a batch larger than the data, a recipe that the device cannot carry out, nothing to train, a loss
            that is no scalar, or a checkpoint of another training, or that is a folder.
        Diverged: the loss of an epoch is not finite; checkpoint and history end with the epoch before.
        files.DamagedFile: the checkpoint is damaged; it is set aside.
        RuntimeError: a step does not fit into the memory of the device.
    """
    split, first = split_of(data, "fit"), next(model.parameters())
    home, device = first.device, choose_device(recipe.device, first.device)
    if device.type == "cpu":
        keep_memory()
    if isinstance(checkpoint, str | Path):
        checkpoint = Checkpoint(checkpoint, model, *split.told_apart_by())
    batches = Batches(split, recipe.augment, device, first.dtype)
    model.to(device, memory_format=memory_format(split.images.ndim - 2))
    try:
        labels = split.labels.to(device)
        return _Training(model, batches, labels, recipe, loss).run(metrics, after_epoch, checkpoint, progress)
    finally:
        model.to(home)


@trains
def train_aggregator(
    model: CNNDNN,
    data: ImageSet | Split,
    recipe: Recipe = RECIPES["dense network"],
    *,
    probabilities: Tensor | None = None,
    loss: Loss | None = None,
    metrics: Metrics | None = None,
    after_epoch: Callable[[dict[str, float]], Any] | None = None,
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
    split, first = split_of(data, "train_aggregator"), next(model.head.parameters())
    home, device = first.device, choose_device(recipe.device, first.device)
    if probabilities is None:
        probabilities = predict(model.local.to(device), split, precision=recipe.precision)
    p = checks.finite("probabilities", torch.as_tensor(probabilities))
    if len(p) != len(split):
        raise ValueError(f"probabilities must be of {len(split)} images, got {len(p)}.")
    if checkpoint is not None:
        checkpoint = Checkpoint(checkpoint, model.head, p, split.labels)
    batches, labels = Rows(p.to(device, first.dtype)), split.labels.to(device)
    recipe = replace(recipe, precision="fp32")
    try:
        head = model.head.to(device)
        return _Training(head, batches, labels, recipe, loss).run(metrics, after_epoch, checkpoint, progress)
    finally:
        model.to(home)


def predict(
    model: nn.Module,
    images: Split | ImageSet | Tensor,
    *,
    logits: bool = False,
    batch_size: int | None = None,
    precision: str = "auto",
) -> Tensor:
    """Class probabilities for uint8 images, in eval mode, on the model's own device.

    Args:
        images: a split; of an image set, its test images; or images alone (n, C, *shape) uint8, which are normalised
            as those on which `fit` has trained the model.
        logits: those in place of probabilities.
        batch_size: by default up to 500 images, fewer where they are large.

    Returns:
        (n, K), or (n, N, K) for local CNNs; on the CPU, in at least single precision.

    Raises:
        ValueError: images without a known normalisation, or an output that is no number.
    """
    split, first = split_to_predict(model, images), next(model.parameters(), None)
    if first is None or not len(split):
        raise ValueError(f"predict needs a model with weights and at least one image, got {len(split)} images.")
    usual = max(1, min(500, 8_000_000 // split.images[0].numel()))
    size = usual if batch_size is None else checks.integer("batch_size", batch_size, 1)
    with eval_mode(model), torch.no_grad(), autocast(first.device, precision, first.dtype):
        batches = (prepare(x.to(first.device), split, first.dtype) for x in split.images.split(size))
        found = torch.cat([(at_least_single if logits else softmax)(model(x)).cpu() for x in batches])
    return checks.finite(f"what the {type(model).__name__} predicts", found)


# ── the loop ──────────────────────────────────────────────────────────────────────────────────────────────────

_RANDOM = RLock()  # PyTorch's random state is one for all threads: they take turns, an epoch each


class _Training:
    """One training: its step, its epochs, and what is kept of them."""

    def __init__(self, model: nn.Module, batches: Batches | Rows, labels: Tensor, recipe: Recipe, loss: Loss | None):
        if recipe.batch_size > len(labels):
            raise ValueError(f"batch_size {recipe.batch_size} is larger than the data: {len(labels)} images.")
        self.model, self.batches, self.labels, self.recipe, self.loss = model, batches, labels, recipe, loss
        self.steps, self.classes = len(labels) // recipe.batch_size, int(labels.max()) + 1
        self.optimizer, self.frozen = make_optimizer(model, recipe), frozen_parts(model)
        self.cast = autocast(labels.device, recipe.precision, next(model.parameters()).dtype)
        wide = torch.float32 if labels.device.type == "mps" else torch.float64  # Apple's GPUs have no double
        self.sums = torch.zeros(2, device=labels.device, dtype=wide)  # of losses and right answers, read once an epoch
        self.tables = Tables(batches.place)
        self.step = Step(self._step, model, labels.device, batches.obstacle or obstacle_of(self.optimizer))

    def _step(self) -> None:
        """A batch: augment → normalise → model → loss → optimiser."""
        indices, *moves = self.tables.take()
        inputs = self.batches(indices, *moves)
        targets = self.labels.index_select(0, indices.to(self.labels.device))
        with self.cast:
            logits = self.model(inputs)
        if self.classes > logits.shape[-1]:
            raise ValueError(f"labels must be below {logits.shape[-1]}, got {self.classes - 1}.")
        loss = self.loss
        cost = cross_entropy(logits, targets) if loss is None else scalar(over_networks(loss, logits, targets))
        self.optimizer.zero_grad(set_to_none=True)
        cost.backward()
        self.optimizer.step()
        answers = logits.detach().argmax(-1).view(len(targets), -1)
        self.sums[0] += cost.detach() / logits[0, ..., 0].numel()  # the mean over networks
        self.sums[1] += (answers == targets[:, None]).to(self.sums.dtype).mean()

    def epoch(self, number: int, after_step: Callable[[], object]) -> tuple[float, float]:
        """One pass over the images, in an order of its own: mean loss and training accuracy, over networks too."""
        device, recipe, generator = self.labels.device, self.recipe, seeded(self.recipe.seed, number)
        order = torch.randperm(len(self.labels), generator=generator, device="cpu")
        of_dropout = int(torch.randint(2**31, (), generator=generator, device="cpu"))
        chosen = order[: self.steps * recipe.batch_size].view(self.steps, -1)
        self.tables.fill(chosen, *self.batches.draw(*chosen.shape, generator))
        self.sums.zero_()
        self.model.train()
        for part in self.frozen:
            part.eval()
        self.step.begin()
        with _RANDOM, torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(of_dropout)
            for step in range(self.steps):
                share = schedule(recipe.schedule, (number + step / self.steps) / recipe.epochs)
                set_rate(self.optimizer, recipe.rate * share)
                self.step()
                after_step()
        loss, right = (self.sums / self.steps).tolist()
        return loss, right

    def run(
        self,
        metrics: Metrics | None,
        after_epoch: Callable[[dict[str, float]], Any] | None,
        checkpoint: Checkpoint | None,
        progress: bool | str,
    ) -> "pd.DataFrame":
        import pandas as pd  # here, so that `import ddlib` stays quick

        model, optimizer, recipe = self.model, self.optimizer, self.recipe
        metrics, checkpoint = metrics or {}, checkpoint or NoCheckpoint()
        if taken := set(metrics) & set(COLUMNS):
            raise ValueError(
                f"a metric cannot be called {taken.pop()!r}: the history has {', '.join(COLUMNS)} already."
            )
        described = recipe.described() | ({} if self.loss is None else {"loss": checks.print_of(self.loss)})
        history = checkpoint.load(model, optimizer, described)
        if isinstance(self.batches, Batches):  # after the checks: what is refused leaves the model as it was
            normalised_as(model, self.batches.split)
        last = len(history) if checkpoint.stopped else recipe.epochs
        title = progress if isinstance(progress, str) else type(model).__name__
        try:
            with progress_bar(title, recipe.epochs * self.steps, len(history) * self.steps, bool(progress)) as bar:
                for epoch in range(len(history), last):
                    start = time.perf_counter()
                    with enough_memory(recipe.batch_size, self.labels.device):
                        mean, right = self.epoch(epoch, bar.update)
                    if not math.isfinite(mean) or not all(bool(p.isfinite().all()) for p in model.parameters()):
                        raise Diverged.of(title, epoch, mean, history, recipe)
                    rate, seconds = float(optimizer.param_groups[0]["lr"]), time.perf_counter() - start
                    row = dict(zip(COLUMNS, (epoch + 1, mean, right, rate, seconds), strict=True))
                    row |= {name: float(metric(model)) for name, metric in metrics.items()}
                    history.append(row)
                    bar.set_postfix(epoch=epoch + 1, loss=f"{mean:.3f}", accuracy=f"{right:.1%}")
                    checkpoint.save(model, optimizer, described, history)
                    if after_epoch is not None and checks.true(after_epoch(dict(row))):
                        checkpoint.save(model, optimizer, described, history, stopped=True)
                        break
        finally:
            checkpoint.leave(model)
            del self.step  # which holds this training: a circle, and with it what lies on the device
        return pd.DataFrame(history)
