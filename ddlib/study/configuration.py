"""What identifies a point of a table, checked before anything runs: data, network, windows, training, strategies."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from .. import checks
from ..backbones import BACKBONES
from ..data.sets import DATASETS, check_options, load_dataset
from ..decomposition import Decomposition, parse_grid
from ..engines import ENGINES
from ..images import ImageSet
from ..training import PRECISIONS, RECIPES, Recipe
from .records import record_name

# strategy → the trainings that it needs, in their order
STRATEGIES: dict[str, tuple[str, ...]] = {
    "global": ("global",),
    "local": ("local",),
    "average": ("local",),
    "vote": ("local",),
    "cnn-dnn": ("local", "dense network"),
    "coherent": ("coherent",),
    "transfer": ("local", "dense network", "transfer"),
    "sub-networks": ("sub-networks",),
    "composed": ("sub-networks",),
    "channels": ("sub-networks", "channels"),
}
CHANNELS = ("sub-networks", "composed", "channels")  # P3's: split along the channels instead of the image
SEVERAL = ("local", "sub-networks")  # strategies of N networks, each with a figure of its own

# the least value of what is a whole number, and of what is one where it is given
LEAST = {"overlap": 0, "width": 1, "epochs": 1, "dense_epochs": 1, "batch_size": 2, "seed": 0}
LEAST_IF_GIVEN = {"train_size": 2, "channel_parts": 1, "out_of_fold": 2}


@dataclass(frozen=True)
class Configuration:
    """One data set, backbone, decomposition and seed, with the strategies to compare.

    Attributes:
        dataset: a key of `DATASETS`.
        backbone: a key of `BACKBONES`.
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
        seed: of the initial weights, the batches and the augmentation.

    Raises:
        ValueError: a value that is not allowed; the message names it and what is.
    """

    dataset: str = "digits"
    backbone: str = "vgg9"
    grid: str | tuple[int, ...] = "2x2"
    overlap: int = 0
    strategies: tuple[str, ...] = tuple(s for s in STRATEGIES if s not in CHANNELS)
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
    seed: int = 0

    def __post_init__(self) -> None:
        samples = checks.one_of("samples", self.samples or "all", ("all", "shares", "windows"))
        least = LEAST | {name: low for name, low in LEAST_IF_GIVEN.items() if getattr(self, name) is not None}
        checked = {
            "dataset": checks.one_of("data set", self.dataset, DATASETS),
            "backbone": checks.one_of("backbone", self.backbone, BACKBONES),
            "strategies": tuple(checks.one_of("strategy", s, STRATEGIES) for s in self.strategies),
            "precision": checks.one_of("precision", self.precision, PRECISIONS),
            "engine": checks.one_of("engine", self.engine, ENGINES),
            "rate": checks.real("rate", number(self.rate), 0, open_low=True),
            "samples": None if samples == "all" else samples,
            "local_losses": checks.flag("local_losses", self.local_losses or False) or None,
            **{name: checks.whole(name, number(getattr(self, name)), low) for name, low in least.items()},
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if not self.strategies:
            raise ValueError(f"strategies must name at least one of {', '.join(STRATEGIES)}.")
        check_options(self.dataset, self.options or "")
        self._check_windows()
        for stage in RECIPES:
            self.recipe(stage)  # checks augment and what else is of training

    def _check_windows(self) -> None:
        subdomains = None
        if self.grid == "regions":
            if self.overlap:
                raise ValueError(f"overlap is of grids; the regions of a data set have none, got {self.overlap}.")
            if DATASETS[self.dataset].regions is None:
                raise ValueError(f"data set {self.dataset!r} has no named regions; give a grid like '2x2'.")
        else:
            grid = parse_grid(self.grid)
            subdomains = math.prod(grid)
            object.__setattr__(self, "grid", "x".join(map(str, grid)))
        parts = self.channel_parts or subdomains
        if parts and {*self.strategies} & {*CHANNELS} and self.width % parts:
            raise ValueError(f"width {self.width} cannot be split evenly into {parts} sub-networks (channel_parts).")
        if self.samples == "windows" and subdomains not in (None, parts):
            raise ValueError(f"channel_parts must be the number of windows, {subdomains} of {self.grid}, got {parts}.")

    @property
    def parameters(self) -> dict[str, Any]:
        """What identifies the point, as JSON can write it: all but the strategies and what is None."""
        return {key: value for key, value in asdict(self).items() if key != "strategies" and value is not None}

    @property
    def name(self) -> str:
        """Of its record: readable, and different for different parameters."""
        return record_name(self.parameters)

    @property
    def source(self) -> dict[str, Any]:
        """Where the images come from: the data set's name and all its options."""
        options = check_options(self.dataset, self.options or "")
        return {"name": self.dataset, **DATASETS[self.dataset].options, **options}

    def data(self) -> ImageSet:
        """The data set as it is now, with all its training images or `train_size` of them."""
        data = load_dataset(self.dataset, **check_options(self.dataset, self.options or ""))
        return data if self.train_size is None else data.few(self.train_size, self.seed)

    def decomposition(self, data: ImageSet) -> Decomposition:
        """The windows on the images of `data`.

        Raises:
            ValueError: a grid or overlap that does not fit the images.
        """
        if self.grid == "regions":
            return Decomposition.regions(data.image_shape, data.regions)
        return Decomposition.grid(data.image_shape, parse_grid(self.grid), self.overlap)

    def recipe(self, stage: str) -> Recipe:
        """The recipe of a training: `RECIPES`, with this point's figures; "local, fold 1" trains as "local"."""
        stage = stage.partition(",")[0]
        base = RECIPES[stage]
        common = dict(batch_size=self.batch_size, precision=self.precision, seed=self.seed)
        if stage == "dense network":
            return replace(base, epochs=self.dense_epochs, **common)
        slower = base.rate / RECIPES["global"].rate  # transfer starts near its goal
        return replace(base, epochs=self.epochs, rate=self.rate * slower, augment=self.augment, **common)


def number(value: Any) -> Any:
    """A number that came as text, as YAML leaves 1e-2; anything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
