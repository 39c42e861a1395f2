"""One point of a table: data set, backbone, decomposition, strategies, seed → a record."""

import math
import time
import warnings
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checks, files
from ..backbones import BACKBONES
from ..data.sets import DATASETS, check_options, load_dataset
from ..decomposition import Decomposition, parse_grid
from ..devices import PRECISIONS, choose_precision
from ..engines import ENGINES
from ..images import ImageSet
from ..training import RECIPES, Recipe
from . import records
from .stages import CHANNELS, STRATEGIES, Stages

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Experiment:
    """One data set, backbone, decomposition and seed, with the strategies to compare.

    Attributes:
        dataset: a key of `datasets.DATASETS`.
        backbone: a key of `backbones.BACKBONES`.
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
        checks.one_of("data set", self.dataset, DATASETS)
        checks.one_of("backbone", self.backbone, BACKBONES)
        if self.grid != "regions":
            object.__setattr__(self, "grid", "x".join(map(str, parse_grid(self.grid))))
        elif self.overlap:
            raise ValueError(f"overlap is of grids; the regions of a data set are what they are, got {self.overlap}.")
        elif DATASETS[self.dataset].regions is None:
            raise ValueError(f"data set {self.dataset!r} has no named regions; give a grid like '2x2'.")
        object.__setattr__(self, "strategies", tuple(checks.one_of("strategy", s, STRATEGIES) for s in self.strategies))
        if not self.strategies:
            raise ValueError(f"strategies must name at least one of {', '.join(STRATEGIES)}.")
        check_options(self.dataset, self.options or "")
        checks.one_of("precision", self.precision, PRECISIONS)
        checks.one_of("engine", self.engine, ENGINES)
        least = {"overlap": 0, "width": 1, "epochs": 1, "dense_epochs": 1, "batch_size": 2, "seed": 0}
        optional = {"train_size": 2, "channel_parts": 1, "out_of_fold": 2}
        for name, low in {**least, **optional}.items():
            if getattr(self, name) is not None or name in least:
                object.__setattr__(self, name, checks.whole(name, getattr(self, name), low))
        if self.local_losses is not None:
            object.__setattr__(self, "local_losses", checks.flag("local_losses", self.local_losses) or None)
        self._check_channels()
        object.__setattr__(self, "rate", checks.real("rate", self.rate, 0, open_low=True))
        for stage in RECIPES:
            self.recipe(stage)  # checks epochs, batch_size, rate, augment and seed

    def _check_channels(self) -> None:
        """What cannot be split is refused before anything runs."""
        samples = checks.one_of("samples", self.samples or "all", ("all", "shares", "windows"))
        object.__setattr__(self, "samples", None if samples == "all" else samples)
        subdomains = None if self.grid == "regions" else math.prod(parse_grid(self.grid))
        parts = self.channel_parts or subdomains
        if parts and set(self.strategies) & {*CHANNELS} and self.width % parts:
            raise ValueError(f"width {self.width} cannot be split evenly into {parts} sub-networks (channel_parts).")
        if samples == "windows" and subdomains not in (None, parts):
            raise ValueError(
                f"{parts} sub-networks (channel_parts) do not fit the {subdomains} windows of {self.grid}."
            )

    @property
    def parameters(self) -> dict[str, Any]:
        """What identifies the point, as JSON can write it: all but the strategies and what is None."""
        return {key: value for key, value in asdict(self).items() if key != "strategies" and value is not None}

    @property
    def name(self) -> str:
        """Of its record: readable, and different for different parameters."""
        return records.record_name(self.parameters)

    def data(self) -> ImageSet:
        """The data set, with all its training images or `train_size` of them."""
        data = _loaded(self.dataset, self.options or "")
        return data if self.train_size is None else data.few(self.train_size, self.seed)

    def _source(self) -> dict[str, Any]:
        return {"name": self.dataset, **getattr(_loaded(self.dataset, self.options or "").source, "keywords", {})}

    def decomposition(self, data: ImageSet) -> Decomposition:
        """The windows on the images of `data`.

        Raises:
            ValueError: a grid or overlap that does not fit the images.
        """
        if self.grid != "regions":
            return Decomposition.grid(data.image_shape, parse_grid(self.grid), self.overlap)
        return Decomposition.regions(data.image_shape, data.regions)

    def recipe(self, stage: str) -> Recipe:
        """The recipe of a training: `RECIPES`, with this experiment's figures; "local, fold 1" trains as "local"."""
        stage = stage.partition(",")[0]
        base = RECIPES[stage]
        common = dict(batch_size=self.batch_size, precision=self.precision, seed=self.seed)
        if stage == "dense network":
            return replace(base, epochs=self.dense_epochs, **common)
        slower = base.rate / RECIPES["global"].rate  # transfer starts near its goal
        return replace(base, epochs=self.epochs, rate=self.rate * slower, augment=self.augment, **common)

    def run(self, folder: str | Path | None = None, **options: Any) -> "pd.DataFrame":
        """Train and evaluate: a tidy frame, a row a strategy (`local`: one for each subdomain); see `record`."""
        return self.record(folder, **options).frame()

    def record(self, folder: str | Path | None = None, *, reuse: bool = True, progress: bool = True) -> records.Record:
        """Train and evaluate.

        Args:
            folder: where the record and, below checkpoints/, the trained models are kept; None keeps nothing.
            reuse: take a record of the very same parameters from the folder instead of training, go on from a
                checkpoint, and share trained models with other points.  A record that lacks a strategy is made
                anew with its own and the new ones; one of other parameters has another name and stays.

        Raises:
            ValueError: a decomposition or recipe that does not fit the images, or images that changed since they were
                recorded; before any training.
            OSError: the folder cannot be written; before any training.
        """
        experiment = self
        if folder is not None:
            folder = files.writable_folder(folder)
            known = _on_record(folder / f"{self.name}.json")
            if known is not None:
                if reuse and "path" in DATASETS[self.dataset].options:
                    _check_same_images(known, self.data())
                if reuse and set(self.strategies) <= set(known.strategies):
                    return known.only(self.strategies)
                experiment = replace(
                    self, strategies=[s for s in STRATEGIES if s in {*self.strategies, *known.strategies}]
                )
        data = self.data()
        clock = time.perf_counter()
        run = Stages(experiment, data, folder if reuse else None, progress)
        provenance = records.provenance(run.device.type, choose_precision(self.precision, run.device), time.time())
        record = records.Record(self.parameters, run.rows(), run.arrays(), provenance)
        provenance |= {
            "seconds": round(time.perf_counter() - clock, 3),
            "data": self._source(),
            "images": data.digest,
            "image_shape": list(data.image_shape),
        }
        if folder is not None:
            record.save(folder)
        return record.only(self.strategies)


def _check_same_images(record: records.Record, data: ImageSet) -> None:
    """A folder of one's own may have changed behind its path; data sets with a checksum cannot."""
    was = record.provenance.get("images", data.digest)
    if was != data.digest:
        raise ValueError(
            f"the images of {data.name} have changed since {record.name} was recorded ({was[:10]}, now "
            f"{data.digest[:10]}): give another output folder, or move the record away."
        )


def _on_record(path: Path) -> records.Record | None:
    """The record, where it is there and whole; a damaged one is set aside."""
    if not path.exists():
        return None
    try:
        return records.load(path)
    except files.DamagedFile as error:
        parts = [files.set_aside(part).name for part in (path, path.with_suffix(".npz")) if part.exists()]
        warnings.warn(f"{error} It was set aside as {' and '.join(parts)}.", stacklevel=3)
        return None


@lru_cache(maxsize=1)
def _loaded(dataset: str, options: str) -> ImageSet:
    """The points of a table mostly share their data set."""
    return load_dataset(dataset, **check_options(dataset, options))
