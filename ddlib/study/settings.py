"""What identifies an experiment: one point of a table, checked before anything long starts."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from .._internal import checks
from .._internal.devices import PRECISIONS
from ..aggregation import STARTS, TIES
from ..data.sets import DATASETS, check_options, load_dataset, written
from ..decomposition import Decomposition, parse_grid
from ..images import ImageSet
from ..local import width_of_each
from ..networks.backbones import BACKBONES, Builder
from ..parallel.executors import ENGINES
from ..strategies import HEADS, SAMPLES, STRATEGIES
from ..training import OPTIMIZERS, RECIPES, SCHEDULES, Recipe
from . import records

Check = Callable[[str, Any], Any]  # the name of a setting and its value → the value as a record has it, or ValueError


def setting(usual: Any, check: Check) -> Any:
    """A row of the table of settings: its usual value, and its check."""
    return field(default=usual, metadata={"check": check})


def whole(low: int) -> Check:
    return lambda name, value: checks.integer(name, number(value), low)


def real(high: float = math.inf) -> Check:
    return lambda name, value: checks.real(name, number(value), 0, high, open_low=True)


def among(allowed: Iterable[str], usual: str | None = None) -> Check:
    """One of some names; None for the usual one: a point has one name, however its defaults are written."""
    return lambda name, value: None if (chosen := checks.one_of(name, value, allowed)) == usual else chosen


def yes(name: str, value: Any) -> bool:
    """True or False, also as text, as `papermill -r` gives it."""
    return checks.flag(name, {"True": True, "False": False}.get(value, value) if isinstance(value, str) else value)


def switch(name: str, value: Any) -> bool | None:
    """True, also as text, or None."""
    return yes(name, value) or None


def known_set(name: str, value: Any) -> str | ImageSet:
    return value if isinstance(value, ImageSet) else checks.one_of("data set", value, DATASETS)


def known_backbone(name: str, value: Any) -> str | Builder:
    if not callable(value):
        return checks.one_of(name, value, BACKBONES)
    own = checks.name_of(value)
    if "<" in own or not hasattr(value, "__qualname__"):
        raise ValueError(f"a record cannot know {own} again: give a builder that is defined at the top of a module.")
    return value


def known_strategies(name: str, value: str | Iterable[str]) -> tuple[str, ...]:
    given = value.split() if isinstance(value, str) else value
    if found := tuple(dict.fromkeys(checks.one_of("strategy", strategy, STRATEGIES) for strategy in given)):
        return found
    raise ValueError(f"strategies must name at least one of {', '.join(STRATEGIES)}.")


def grid_or_regions(name: str, value: str | Sequence[int]) -> str:
    return value if isinstance(value, str) and value == "regions" else "x".join(map(str, parse_grid(value)))


def width_or_rule(name: str, value: str | int) -> str | int | None:
    """None for the usual rule, "full", or a number, which may come as text."""
    rule = number(value)
    width_of_each(rule, 1, 1)
    return None if rule == "proportional" else rule if isinstance(rule, str) else int(rule)


def hidden_layers(name: str, value: str | int) -> str:
    """Widths of the hidden layers of the dense network: "128 64", or nothing for "none"."""
    try:
        widths = () if str(value) in ("none", "") else str(value).split()
        return " ".join(str(checks.integer(name, int(width), 1)) for width in widths)
    except ValueError:
        raise ValueError(f"dense_hidden must be 'none' or widths like '128 64', got {value!r}.") from None


def other_decay(name: str, value: float | str) -> float | None:
    """None for the usual one."""
    decay = checks.real(name, number(value), 0)
    return None if decay == RECIPES["global"].weight_decay else decay


def number(value: Any) -> Any:
    """A number that came as text, as YAML leaves 1e-2; anything else as it is."""
    with suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


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
        engine: "auto", "fused" or "loop", see `train_local`; not "fused" with samples="shares".
        options: of the data set, e.g. "size=64 split_seed=1", see `load_dataset`; None for its defaults.
        train_size: train on so many images only, each class in proportion; None for all.
        channel_parts: sub-networks into which the channels are split (P3); None for as many as subdomains.
        samples: what a sub-network trains on: "all" images (also None), its own share of them ("shares"), or its
            own window of each ("windows").
        out_of_fold: where the dense network takes local probabilities that the local CNNs give for their own training
            images (None, the default), it may learn to trust them too much; with a number of folds it takes
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

    dataset: str | ImageSet = setting("digits", known_set)  # noqa: RUF009
    backbone: str | Builder = setting("vgg9", known_backbone)  # noqa: RUF009
    grid: str | tuple[int, ...] = setting("2x2", grid_or_regions)
    overlap: int = setting(0, whole(0))
    strategies: tuple[str, ...] = setting(tuple(s for s, row in STRATEGIES.items() if row.usual), known_strategies)
    width: int = setting(32, whole(1))
    epochs: int = setting(12, whole(1))
    dense_epochs: int = setting(RECIPES["dense network"].epochs, whole(1))
    batch_size: int = setting(RECIPES["global"].batch_size, whole(2))
    rate: float = setting(RECIPES["global"].rate, real())
    augment: bool = setting(True, checks.flag)
    precision: str = setting("auto", among(PRECISIONS))
    engine: str = setting("auto", among(ENGINES))
    options: str | None = setting(None, lambda name, value: value)  # checked with the data set that they are of
    train_size: int | None = setting(None, whole(2))
    channel_parts: int | None = setting(None, whole(1))
    samples: str | None = setting(None, among(SAMPLES, "all"))
    out_of_fold: int | None = setting(None, whole(2))
    local_losses: bool | None = setting(None, switch)
    log_probabilities: bool | None = setting(None, switch)
    dense_hidden: str | int | None = setting(None, hidden_layers)
    dense_start: str | None = setting(None, among(STARTS, "random"))
    local_width: str | int | None = setting(None, width_or_rule)
    coarse: bool | None = setting(None, switch)
    ties: str | None = setting(None, among(TIES, "average"))
    class_weights: str | None = setting(None, among(["balanced"]))
    validation: float | None = setting(None, real(0.99))
    optimizer: str | None = setting(None, among(OPTIMIZERS, RECIPES["global"].optimizer))
    schedule: str | None = setting(None, among(SCHEDULES, RECIPES["global"].schedule))
    weight_decay: float | None = setting(None, other_decay)
    seed: int = setting(0, whole(0))

    def __post_init__(self) -> None:
        for row in fields(self):
            value = getattr(self, row.name)
            if value is not None or row.default is not None:  # what is None by default may stay None
                object.__setattr__(self, row.name, row.metadata["check"](row.name, value))
        object.__setattr__(self, "options", self._options())
        self._check_windows()
        self.recipe("global")  # has bounds of its own

    def _options(self) -> str | None:
        """As the usual ones are left out: a point has one name, however its options are written."""
        if isinstance(self.dataset, ImageSet):
            if self.options:
                raise ValueError(f"options are of data sets by name; {self.dataset.name} is an ImageSet.")
            return None
        return written(self.dataset, check_options(self.dataset, self.options or "")) or None

    def _check_windows(self) -> None:
        subdomains = None if self.grid == "regions" else math.prod(parse_grid(self.grid))
        if subdomains is None:
            if self.overlap:
                raise ValueError(f"overlap is of grids; the regions of a data set have none, got {self.overlap}.")
            known = self.dataset if isinstance(self.dataset, ImageSet) else DATASETS[self.dataset]
            if known.regions is None:
                name = self.parameters["dataset"]
                raise ValueError(f"data set {name!r} has no named regions; give a grid like '2x2'.")
        parts = self.channel_parts or subdomains
        of_channels = any(STRATEGIES[s].of_channels for s in self.strategies)
        if of_channels and parts and self.width % parts:
            raise ValueError(f"width {self.width} cannot be split evenly into {parts} sub-networks (channel_parts).")
        if of_channels and self.samples == "shares" and self.engine in ("fused", "streams"):
            raise ValueError(f"engine {self.engine!r} needs the same images for all; for samples='shares' take 'loop'.")
        if self.samples == "windows" and subdomains not in (None, parts):
            raise ValueError(
                f"{parts} sub-networks (channel_parts) do not fit the {subdomains} windows of {self.grid}."
            )

    @cached_property
    def _identity(self) -> str:
        """Of an image set that is given as such: what tells it from others of its name."""
        data, regions = self.dataset, None
        if self.grid == "regions" and data.regions is not None:
            windows = Decomposition.regions(data.image_shape, data.regions)
            regions = [windows.names, windows.bounds]
        return records.key([data.identity, data.classes, regions])

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
        own = {name: getattr(self, name) for name in ("optimizer", "schedule", "weight_decay")}
        common |= {name: value for name, value in own.items() if value is not None}
        return replace(base, epochs=self.epochs, rate=self.rate * slower, augment=self.augment, **common)

    def trainings(self) -> dict[str, Any]:
        """What `strategies.Trainings` takes, beside backbone, windows and images."""
        given = {
            name: getattr(self, name) for name in ("local_width", "ties", "local_losses", "channel_parts", "samples")
        }
        hidden = None if self.dense_hidden is None else tuple(map(int, self.dense_hidden.split()))
        head = {"log_probabilities": self.log_probabilities, "start": self.dense_start, "hidden": hidden}
        return {name: value for name, value in given.items() if value is not None} | {
            "width": self.width,
            "recipes": {training: self.recipe(training) for training in RECIPES},
            "seed": self.seed,
            "head": {name: value for name, value in head.items() if value is not None},
            "balanced": self.class_weights == "balanced",
        }
