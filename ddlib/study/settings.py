"""What identifies an experiment: one point of a table, checked before anything long starts."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from .._internal import checks
from ..aggregation import STARTS, TIES
from ..data.sets import DATASETS, check_options, load_dataset, written
from ..decomposition import Decomposition, parse_grid
from ..images import ImageSet
from ..local import width_of_each
from ..networks.backbones import BACKBONES, Builder
from ..parallel.executors import ENGINES
from ..strategies import HEADS, STRATEGIES
from ..training import OPTIMIZERS, RECIPES, SCHEDULES, Recipe
from . import records

# the least value of what is a whole number; what is None by default may stay None
LEAST = {"overlap": 0, "width": 1, "epochs": 1, "dense_epochs": 1, "batch_size": 2, "seed": 0}
LEAST |= {"train_size": 2, "channel_parts": 1, "out_of_fold": 2}
TRAINING = ("optimizer", "schedule", "weight_decay")  # of a recipe, None for the usual ones
FLAGS = ("local_losses", "log_probabilities", "coarse")  # what is off, or None, unless it is asked for


@dataclass(frozen=True)
class Settings:
    """One data set, backbone, decomposition and seed, with the strategies to compare.

    Attributes:
        dataset: a key of `DATASETS`; or an `ImageSet`, which a record knows by its name and its digest.
        backbone: a key of `BACKBONES`; or a builder, which a record knows by its qualified name.
        grid: subdomains for each axis, "2x2" or (2, 2); "regions" for the named regions of the data set.
        overlap: pixels by which a window reaches past its subdomain.
        strategies: some of `STRATEGIES`; what they share is trained once.
        width: of the global CNN; each local CNN has `width / sqrt(N)`.
        epochs: of the global CNN, the local CNNs, the coherent model, and of transfer after the local CNNs.
        dense_epochs: of the dense network.
        batch_size, rate, augment, precision: see `Recipe`; transfer trains at a fifth of the rate.
        engine: "auto", "fused" or "loop", see `train_local`.
        options: of the data set, e.g. "size=64 split_seed=1", see `load_dataset`; None for its defaults.
        train_size: train on so many images only, each class in proportion; None for all.
        channel_parts: sub-networks into which the channels are split (P3); None for as many as subdomains.
        samples: what a sub-network trains on: "all" images (also None), its own share of them ("shares"), or its
            own window of each ("windows").
        out_of_fold: where the dense network takes local probabilities that the local CNNs give for their own training
            images (None: the papers' way), it may learn to trust them too much; with a number of folds it takes
            those of local CNNs that were trained on the other folds (stacked generalisation, Wolpert 1992).
        local_losses: True adds the local losses to the coherent model's and transfer's (`model.BothLevels`).
        log_probabilities: True shows the dense network the logarithms (`aggregation.DenseAggregator`).
        dense_hidden: hidden layers of the dense network, "none" or widths like "128 64"; None for its usual ones.
        dense_start: "average" or "geometric", what the dense network starts as; None for random weights.
        local_width: of each local CNN: "full" or a number, see `LocalCNNs`; None for "proportional".
        coarse: True adds the coarse window, see `Decomposition.grid`.
        ties: "first" gives ties of the vote to the first class; None to the higher average.
        class_weights: "balanced" weighs each class by the inverse of its frequency in the loss; None for no weights.
        validation: a share of the training images that takes the place of the test images, which stay untouched.
        optimizer, schedule, weight_decay: of all trainings but that of the dense network, see `Recipe`; None for its
            usual ones.  Another optimiser wants another `rate`.
        seed: of the initial weights, the batches and the augmentation.

    Raises:
        ValueError: a value that is not allowed; the message names it and what is.
    """

    dataset: str | ImageSet = "digits"
    backbone: str | Builder = "vgg9"
    grid: str | tuple[int, ...] = "2x2"
    overlap: int = 0
    strategies: tuple[str, ...] = tuple(name for name, row in STRATEGIES.items() if row.usual)
    width: int = 32
    epochs: int = 12
    dense_epochs: int = RECIPES["dense network"].epochs
    batch_size: int = RECIPES["global"].batch_size
    rate: float = RECIPES["global"].rate
    augment: bool = True
    precision: str = "auto"
    engine: str = "auto"
    options: str | None = None
    train_size: int | None = None
    channel_parts: int | None = None
    samples: str | None = None
    out_of_fold: int | None = None
    local_losses: bool | None = None
    log_probabilities: bool | None = None
    dense_hidden: str | int | None = None
    dense_start: str | None = None
    local_width: str | int | None = None
    coarse: bool | None = None
    ties: str | None = None
    class_weights: str | None = None
    validation: float | None = None
    optimizer: str | None = None
    schedule: str | None = None
    weight_decay: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        samples = checks.one_of("samples", self.samples or "all", ("all", "shares", "windows"))
        strategies = self.strategies.split() if isinstance(self.strategies, str) else self.strategies
        whole = {name: number(getattr(self, name)) for name in LEAST}
        given = [name for name, v in whole.items() if v is not None or getattr(Settings, name) is not None]
        checked = {
            "dataset": self._dataset(),
            "backbone": self._backbone(),
            "strategies": tuple(dict.fromkeys(checks.one_of("strategy", s, STRATEGIES) for s in strategies)),
            "augment": checks.flag("augment", self.augment),
            "engine": checks.one_of("engine", self.engine, ENGINES),
            "options": self._options(),
            "rate": checks.real("rate", number(self.rate), 0, open_low=True),
            "samples": None if samples == "all" else samples,
            "dense_start": unless("random", checks.one_of("dense_start", self.dense_start or "random", STARTS)),
            "ties": unless("average", checks.one_of("ties", self.ties or "average", TIES)),
            "local_width": self._local_width(),
            **self._training(),
            "dense_hidden": None if self.dense_hidden is None else " ".join(map(str, hidden_layers(self.dense_hidden))),
            "class_weights": self.class_weights and checks.one_of("class_weights", self.class_weights, ("balanced",)),
            **{name: checks.flag(name, truth(getattr(self, name))) or None for name in FLAGS},
            **{name: checks.integer(name, whole[name], LEAST[name]) for name in given},
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.validation is not None:
            share = checks.real("validation", number(self.validation), 0, 0.99, open_low=True)
            object.__setattr__(self, "validation", share)
        if not self.strategies:
            raise ValueError(f"strategies must name at least one of {', '.join(STRATEGIES)}.")
        self._check_windows()
        recipe = self.recipe("global")  # checks rate, augment, precision and what else is of training
        for name in ("rate", "augment", "precision"):
            object.__setattr__(self, name, getattr(recipe, name))

    def _dataset(self) -> str | ImageSet:
        if isinstance(self.dataset, ImageSet):
            return self.dataset
        return checks.one_of("data set", self.dataset, DATASETS)

    def _backbone(self) -> str | Builder:
        if not callable(self.backbone):
            return checks.one_of("backbone", self.backbone, BACKBONES)
        name = checks.name_of(self.backbone)
        if "<" in name or not hasattr(self.backbone, "__qualname__"):
            raise ValueError(
                f"a record cannot know {name} again: give a builder that is defined at the top of a module."
            )
        return self.backbone

    def _options(self) -> str | None:
        """As the usual ones are left out: a point has one name, however its options are written."""
        if isinstance(self.dataset, ImageSet):
            if self.options:
                raise ValueError(f"options are of data sets by name; {self.dataset.name} is an ImageSet.")
            return None
        return written(self.dataset, check_options(self.dataset, self.options or "")) or None

    def _local_width(self) -> str | int | None:
        """None for the usual rule, "full", or a number, which may come as text."""
        given = number(self.local_width) if self.local_width is not None else "proportional"
        width_of_each(given, 1, 1)
        return unless("proportional", given if isinstance(given, str) else int(given))

    def _training(self) -> dict[str, Any]:
        """Optimiser, schedule and weight decay, None for the usual ones."""
        usual = RECIPES["global"]
        asked = {name: getattr(self, name) for name in TRAINING}
        asked = {name: getattr(usual, name) if value is None else value for name, value in asked.items()}
        checked = {
            "optimizer": checks.one_of("optimizer", asked["optimizer"], OPTIMIZERS),
            "schedule": checks.one_of("schedule", asked["schedule"], SCHEDULES),
            "weight_decay": checks.real("weight_decay", number(asked["weight_decay"]), 0),
        }
        return {name: unless(getattr(usual, name), value) for name, value in checked.items()}

    def _check_windows(self) -> None:
        subdomains = None
        if isinstance(self.grid, str) and self.grid == "regions":
            if self.overlap:
                raise ValueError(f"overlap is of grids; the regions of a data set have none, got {self.overlap}.")
            known = self.dataset if isinstance(self.dataset, ImageSet) else DATASETS[self.dataset]
            if known.regions is None:
                name = self.parameters["dataset"]
                raise ValueError(f"data set {name!r} has no named regions; give a grid like '2x2'.")
        else:
            grid = parse_grid(self.grid)
            subdomains = math.prod(grid)
            object.__setattr__(self, "grid", "x".join(map(str, grid)))
        parts = self.channel_parts or subdomains
        if parts and self.width % parts and any(STRATEGIES[s].of_channels for s in self.strategies):
            raise ValueError(f"width {self.width} cannot be split evenly into {parts} sub-networks (channel_parts).")
        if self.samples == "windows" and subdomains not in (None, parts):
            raise ValueError(
                f"{parts} sub-networks (channel_parts) do not fit the {subdomains} windows of {self.grid}."
            )

    @cached_property
    def _identity(self) -> str:
        """Of an image set that is given as such: what tells it from others of its name."""
        return self.dataset.identity

    @property
    def parameters(self) -> dict[str, Any]:
        """What identifies the point, as JSON can write it: all but the strategies and what is None."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "strategies"}
        if isinstance(self.dataset, ImageSet):
            values |= {"dataset": self.dataset.name, "images": self._identity[:16]}
        if callable(self.backbone):
            values["backbone"] = checks.name_of(self.backbone)
        return {name: value for name, value in values.items() if value is not None}

    @property
    def name(self) -> str:
        """Of its record: readable, and different for different parameters."""
        return records.record_name(self.parameters)

    def data(self) -> ImageSet:
        """The data set as it is now: all its training images or `train_size` of them, or those without a validation."""
        data = self.dataset
        if not isinstance(data, ImageSet):
            data = load_dataset(data, **check_options(data, self.options or ""))
        data = data if self.train_size is None else data.few(self.train_size, self.seed)
        return data if self.validation is None else data.hold_out(self.validation, self.seed)

    def decomposition(self, data: ImageSet) -> Decomposition:
        """The windows on the images of `data`.

        Raises:
            ValueError: a grid or overlap that does not fit the images.
        """
        if self.grid == "regions":
            return Decomposition.regions(data.image_shape, data.regions, bool(self.coarse))
        return self.decomposition_of(data.image_shape)

    def decomposition_of(self, shape: Sequence[int]) -> Decomposition:
        """The windows of a grid on images of a shape."""
        return Decomposition.grid(shape, parse_grid(self.grid), self.overlap, bool(self.coarse))

    def recipe(self, stage: str) -> Recipe:
        """The recipe of a training: `RECIPES`, with this point's figures."""
        base, common = RECIPES[stage], dict(batch_size=self.batch_size, precision=self.precision, seed=self.seed)
        if stage in HEADS:
            return replace(base, epochs=self.dense_epochs, **common)
        slower = base.rate / RECIPES["global"].rate  # transfer starts near its goal
        own = {name: value for name in TRAINING if (value := getattr(self, name)) is not None}
        return replace(base, epochs=self.epochs, rate=self.rate * slower, augment=self.augment, **common, **own)

    def trainings(self) -> dict[str, Any]:
        """What `strategies.Trainings` takes, beside backbone, windows and images."""
        head: dict[str, Any] = {
            "log_probabilities": bool(self.log_probabilities),
            "start": self.dense_start or "random",
        }
        if self.dense_hidden is not None:
            head["hidden"] = hidden_layers(self.dense_hidden)
        return {
            "width": self.width,
            "local_width": self.local_width or "proportional",
            "recipes": {training: self.recipe(training) for training in RECIPES},
            "seed": self.seed,
            "head": head,
            "ties": self.ties or "average",
            "local_losses": bool(self.local_losses),
            "balanced": self.class_weights == "balanced",
            "channel_parts": self.channel_parts,
            "samples": self.samples or "all",
        }


def number(value: Any) -> Any:
    """A number that came as text, as YAML leaves 1e-2; anything else as it is."""
    with suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


def truth(value: Any) -> Any:
    """True or False that came as text, and None as False; anything else as it is."""
    return {None: False, "True": True, "False": False}.get(value, value) if isinstance(value, str | None) else value


def hidden_layers(text: str | int) -> tuple[int, ...]:
    """Hidden layers of the dense network: "none" → (), "128 64" → (128, 64)."""
    try:
        widths = () if str(text) in ("none", "") else str(text).split()
        return tuple(checks.integer("dense_hidden", int(width), 1) for width in widths)
    except ValueError:
        raise ValueError(f"dense_hidden must be 'none' or widths like '128 64', got {text!r}.") from None


def unless(usual: Any, value: Any) -> Any:
    """None for the usual value: a point has one name, however its defaults are written."""
    return None if value == usual else value
