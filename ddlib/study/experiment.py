"""One point of a table: what identifies it is checked, then it is trained, evaluated, and kept as a record."""

import math
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import channels, checks, files
from ..aggregation import STARTS, TIES, importance
from ..backbones import BACKBONES, count_parameters
from ..data.sets import DATASETS, check_options, load_dataset
from ..decomposition import Decomposition, parse_grid
from ..devices import choose_precision
from ..engines import ENGINES
from ..images import ImageSet
from ..local import width_of_each
from ..training import RECIPES, Recipe, accuracy, predict
from . import records
from .stages import CHANNELS, SEVERAL, STRATEGIES, Stages, hidden_layers, seconds

if TYPE_CHECKING:
    import pandas as pd

# the least value of what is a whole number; what is None by default may stay None
LEAST = {"overlap": 0, "width": 1, "epochs": 1, "dense_epochs": 1, "batch_size": 2, "seed": 0}
LEAST |= {"train_size": 2, "channel_parts": 1, "out_of_fold": 2}
FLAGS = ("local_losses", "log_probabilities", "coarse")  # what is off, or None, unless it is asked for


@dataclass(frozen=True)
class Experiment:
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
        log_probabilities: True shows the dense network the logarithms (`aggregation.DenseAggregator`).
        dense_hidden: hidden layers of the dense network, "none" or widths like "128 64"; None for its usual ones.
        dense_start: "average" or "geometric", what the dense network starts as; None for random weights.
        local_width: of each local CNN: "full" or a number, see `LocalCNNs`; None for "proportional".
        coarse: True adds the coarse window, see `Decomposition.grid`.
        ties: "first" gives ties of the vote to the first class; None to the higher average.
        seed: of the initial weights, the batches and the augmentation.

    Raises:
        ValueError: a value that is not allowed; the message names it and what is.
    """

    dataset: str = "digits"
    backbone: str = "vgg9"
    grid: str | tuple[int, ...] = "2x2"
    overlap: int = 0
    strategies: tuple[str, ...] = tuple(s for s in STRATEGIES if s not in (*CHANNELS, "geometric", "correction"))
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
    seed: int = 0

    def __post_init__(self) -> None:
        samples = checks.one_of("samples", self.samples or "all", ("all", "shares", "windows"))
        whole = {name: number(getattr(self, name)) for name in LEAST}
        given = [name for name, v in whole.items() if v is not None or getattr(Experiment, name) is not None]
        checked = {
            "dataset": checks.one_of("data set", self.dataset, DATASETS),
            "backbone": checks.one_of("backbone", self.backbone, BACKBONES),
            "strategies": tuple(checks.one_of("strategy", s, STRATEGIES) for s in self.strategies),
            "engine": checks.one_of("engine", self.engine, ENGINES),
            "rate": checks.real("rate", number(self.rate), 0, open_low=True),
            "samples": None if samples == "all" else samples,
            "dense_start": unless("random", checks.one_of("dense_start", self.dense_start or "random", STARTS)),
            "ties": unless("average", checks.one_of("ties", self.ties or "average", TIES)),
            "local_width": self._local_width(),
            "dense_hidden": None if self.dense_hidden is None else str(self.dense_hidden),
            **{name: checks.flag(name, getattr(self, name) or False) or None for name in FLAGS},
            **{name: checks.whole(name, whole[name], LEAST[name]) for name in given},
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.dense_hidden is not None:
            hidden_layers(self.dense_hidden)
        if not self.strategies:
            raise ValueError(f"strategies must name at least one of {', '.join(STRATEGIES)}.")
        check_options(self.dataset, self.options or "")
        self._check_windows()
        for stage in RECIPES:
            self.recipe(stage)  # checks augment, precision and what else is of training

    def _local_width(self) -> str | int | None:
        """None for the usual rule, "full", or a number, which may come as text."""
        given = number(self.local_width) if self.local_width is not None else "proportional"
        width_of_each(given, 1, 1)
        return unless("proportional", given if isinstance(given, str) else int(given))

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
        """The data set as it is now, with all its training images or `train_size` of them."""
        data = load_dataset(self.dataset, **check_options(self.dataset, self.options or ""))
        return data if self.train_size is None else data.few(self.train_size, self.seed)

    def decomposition(self, data: ImageSet) -> Decomposition:
        """The windows on the images of `data`.

        Raises:
            ValueError: a grid or overlap that does not fit the images.
        """
        if self.grid == "regions":
            return Decomposition.regions(data.image_shape, data.regions, bool(self.coarse))
        return Decomposition.grid(data.image_shape, parse_grid(self.grid), self.overlap, bool(self.coarse))

    def recipe(self, stage: str) -> Recipe:
        """The recipe of a training: `RECIPES`, with this point's figures; "local, fold 1" trains as "local"."""
        stage = stage.partition(",")[0]
        base = RECIPES[stage]
        common = dict(batch_size=self.batch_size, precision=self.precision, seed=self.seed)
        if stage in ("dense network", "correction"):
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
        asked, known = self, None
        if folder is not None:
            folder = files.writable_folder(folder)
            known = records.find(folder, self.name)
        if known is not None:
            if reuse and "path" in DATASETS[self.dataset].options:
                _check_same_images(known, self.data().digest)
            if reuse and {*self.strategies} <= {*known.strategies}:
                return known.only(self.strategies)
            asked = replace(self, strategies=[s for s in STRATEGIES if s in {*self.strategies, *known.strategies}])
        data = self.data()
        started, clock = time.time(), time.perf_counter()
        stages = Stages(asked, data, folder if reuse else None, progress)
        made = records.provenance(stages.device.type, choose_precision(self.precision, stages.device), started)
        record = records.Record(self.parameters, _rows(stages), _arrays(stages), made)
        options = DATASETS[self.dataset].options | check_options(self.dataset, self.options or "")
        record.provenance |= {
            "seconds": round(time.perf_counter() - clock, 3),
            "data": {"name": self.dataset, **options},
            "images": data.digest,
            "image_shape": list(data.image_shape),
        }
        if folder is not None:
            record.save(folder)
        return record.only(self.strategies)


def number(value: Any) -> Any:
    """A number that came as text, as YAML leaves 1e-2; anything else as it is."""
    with suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


def unless(usual: Any, value: Any) -> Any:
    """None for the usual value: a point has one name, however its defaults are written."""
    return None if value == usual else value


def _check_same_images(record: records.Record, digest: str) -> None:
    """A folder of one's own may have changed behind its path; data sets with a checksum cannot."""
    before = record.provenance.get("images", digest)
    if before != digest:
        raise ValueError(
            f"the images of {record.parameters['dataset']} have changed since {record.name} was recorded "
            f"({before[:10]}, now {digest[:10]}): give another output folder, or move the record away."
        )


def _rows(stages: Stages) -> list[dict[str, Any]]:
    """The figures of a record: a row a strategy; of several networks, a row each."""
    import pandas as pd

    point, data, rows = stages.point, stages.data, []
    for strategy in point.strategies:
        train = np.atleast_1d(accuracy(stages.probabilities(strategy, "train"), data.train.labels))
        test = np.atleast_1d(accuracy(stages.probabilities(strategy, "test"), data.test.labels))
        history = pd.concat([frame.assign(stage=stage) for stage, frame in stages.histories.items()])
        network = stages.model(strategy)
        names = network.decomposition.names if strategy in SEVERAL else ("",)
        for name, in_training, in_test in zip(names, train.tolist(), test.tolist(), strict=True):
            row = vars(point) | {
                "strategy": strategy,
                "subdomain": name,
                "train_accuracy": in_training,
                "test_accuracy": in_test,
                "parameters": count_parameters(network) // len(names),
                "seconds": round(seconds(history, strategy), 3),
            }
            rows.append({column: row[column] for column in records.ROW})
    return rows


def _arrays(stages: Stages) -> dict[str, np.ndarray]:
    """What else a record keeps, see `Record`."""
    point, labels = stages.point, stages.data.test.labels
    small = np.uint8 if stages.data.num_classes <= 256 else np.int64
    arrays = {"labels": labels.numpy().astype(small)}
    for strategy in point.strategies:
        p = stages.probabilities(strategy, "test")
        arrays[f"predicted/{strategy}"] = p.argmax(-1).numpy().T.astype(small)
        if p.shape[-1] == 2:
            arrays[f"score/{strategy}"] = p[..., 1].numpy().T.astype(np.float32)
    if "cnn-dnn" in point.strategies:
        p = stages.probabilities("local", "test")
        arrays["importance"] = np.array(importance(stages.model("cnn-dnn").head, p, labels))
    if {*point.strategies} & {*CHANNELS} and point.samples != "windows":
        p = predict(stages.model("sub-networks"), stages.data.test, precision="fp32")  # bf16 would round the bounds
        arrays |= {f"bounds/{name}": np.array(value) for name, value in channels.bounds(p.log(), labels).items()}
    for stage, history in stages.histories.items():
        arrays |= {f"history/{stage}/{column}": history[column].to_numpy() for column in history}
    return arrays
