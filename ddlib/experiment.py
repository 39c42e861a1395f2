"""One point of a table: data set, backbone, decomposition, strategies, seed → a record."""

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from . import checks, files, records
from .aggregation import DenseAggregator, average_probability, majority_vote
from .backbones import BACKBONES, build, count_parameters
from .datasets import DATASETS, ImageSet, load_dataset
from .decomposition import Decomposition, parse_grid
from .engines import ENGINES, train_local
from .local import LocalCNNs
from .model import CNNDNN
from .training import (
    PRECISIONS,
    RECIPES,
    Recipe,
    accuracy,
    choose_device,
    choose_precision,
    fit,
    predict,
    train_aggregator,
)

if TYPE_CHECKING:
    import pandas as pd

# strategy → the trainings that it needs
STRATEGIES: dict[str, tuple[str, ...]] = {
    "global": ("global",),
    "local": ("local",),
    "average": ("local",),
    "vote": ("local",),
    "cnn-dnn": ("local", "dense network"),
    "coherent": ("coherent",),
    "transfer": ("local", "dense network", "transfer"),
}


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
        seed: of the initial weights, the batches and the augmentation.
    """

    dataset: str = "digits"
    backbone: str = "vgg9"
    grid: str | tuple[int, ...] = "2x2"
    overlap: int = 0
    strategies: tuple[str, ...] = tuple(STRATEGIES)
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
    seed: int = 0

    def __post_init__(self) -> None:
        checks.one_of("data set", self.dataset, DATASETS)
        checks.one_of("backbone", self.backbone, BACKBONES)
        if self.grid != "regions":
            object.__setattr__(self, "grid", "x".join(map(str, parse_grid(self.grid))))
        elif self.overlap:
            raise ValueError(f"overlap is of grids; the regions of a data set are what they are, got {self.overlap}.")
        object.__setattr__(self, "strategies", tuple(checks.one_of("strategy", s, STRATEGIES) for s in self.strategies))
        if not self.strategies:
            raise ValueError(f"strategies must name at least one of {', '.join(STRATEGIES)}.")
        for option in (self.options or "").split():
            checks.one_of(f"option of {self.dataset}", option.partition("=")[0], DATASETS[self.dataset].options)
        checks.one_of("precision", self.precision, PRECISIONS)
        checks.one_of("engine", self.engine, ENGINES)
        least = {"overlap": 0, "width": 1, "epochs": 1, "dense_epochs": 1, "batch_size": 2, "seed": 0, "train_size": 2}
        for name, low in least.items():
            if getattr(self, name) is not None or name != "train_size":
                object.__setattr__(self, name, checks.whole(name, getattr(self, name), low))
        object.__setattr__(self, "rate", checks.real("rate", self.rate, 0, open_low=True))
        for stage in RECIPES:
            self.recipe(stage)  # checks epochs, batch_size, rate, augment and seed

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

    def _source(self) -> dict[str, Any] | None:
        return _loaded(self.dataset, self.options or "").source

    def decomposition(self, data: ImageSet) -> Decomposition:
        """The windows on the images of `data`.

        Raises:
            ValueError: a grid or overlap that does not fit the images, or a data set without named regions.
        """
        if self.grid != "regions":
            return Decomposition.grid(data.image_shape, parse_grid(self.grid), self.overlap)
        if data.regions is None:
            raise ValueError(f"data set {data.name!r} has no named regions; give a grid like '2x2'.")
        return Decomposition.regions(data.image_shape, data.regions)

    def recipe(self, stage: str) -> Recipe:
        """The recipe of a training: `RECIPES`, with this experiment's figures."""
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
            ValueError: a decomposition or recipe that does not fit the images; before any training.
            OSError: the folder cannot be written; before any training.
        """
        experiment = self
        if folder is not None:
            folder = files.writable_folder(folder)
            known = _on_record(folder / f"{self.name}.json")
            if known is not None:
                if reuse and set(self.strategies) <= set(known.strategies):
                    return known.only(self.strategies)
                experiment = replace(
                    self, strategies=[s for s in STRATEGIES if s in {*self.strategies, *known.strategies}]
                )
        data = self.data()
        clock = time.perf_counter()
        run = _Run(experiment, data, folder if reuse else None, progress)
        provenance = records.provenance(run.device.type, choose_precision(self.precision, run.device), time.time())
        record = records.Record(self.parameters, run.rows(), run.arrays(), provenance)
        provenance |= {"seconds": round(time.perf_counter() - clock, 3), "data": self._source()}
        if folder is not None:
            record.save(folder)
        return record.only(self.strategies)


def _on_record(path: Path) -> records.Record | None:
    """The record, where it is there and whole; a damaged one is set aside."""
    if not path.exists():
        return None
    try:
        return records.load(path)
    except files.DamagedFile as error:
        warnings.warn(f"{error} It was set aside as {files.set_aside(path).name}.", stacklevel=3)
        return None


@lru_cache(maxsize=1)
def _loaded(dataset: str, options: str) -> ImageSet:
    """The points of a table mostly share their data set."""
    import yaml

    pairs = [option.partition("=") for option in options.split()]
    return load_dataset(dataset, **{name: yaml.safe_load(value) for name, _, value in pairs})


class _Run:
    """The trainings and predictions of one experiment, each made when it is first asked for."""

    def __init__(self, experiment: Experiment, data: ImageSet, folder: Path | None, progress: bool):
        self.experiment, self.data, self.folder, self.progress = experiment, data, folder, progress
        self.device = choose_device("auto")
        self.decomposition = experiment.decomposition(data)
        self.histories: dict[str, pd.DataFrame] = {}
        self.sizes: dict[str, int] = {}
        if experiment.batch_size > len(data.train):
            raise ValueError(f"batch_size {experiment.batch_size} is larger than the data: {len(data.train)} images.")

    # ── trainings ──

    @cached_property
    def global_cnn(self) -> nn.Module:
        net = self._fresh(lambda: build(self.experiment.backbone, **self._size(), dims=len(self.data.image_shape)))
        return self._fit("global", net)

    @cached_property
    def local(self) -> LocalCNNs:
        local = self._fresh(self._local_cnns)
        options = {"engine": self.experiment.engine, "progress": self.progress and "local CNNs"}
        return self._keep(
            "local", local, lambda recipe, path: train_local(local, self.data, recipe, checkpoint=path, **options)
        )

    @cached_property
    def cnn_dnn(self) -> CNNDNN:
        model = CNNDNN(self.local, self._fresh(self._dense_network))
        p = self.local_probabilities("train")
        options = {"probabilities": p, "progress": self.progress and "dense network"}
        self._keep(
            "dense network",
            model.head,
            lambda recipe, path: train_aggregator(model, self.data, recipe, checkpoint=path, **options),
        )
        return model

    @cached_property
    def coherent(self) -> CNNDNN:
        return self._fit("coherent", self._fresh(lambda: CNNDNN(self._local_cnns(), self._dense_network())))

    @cached_property
    def transfer(self) -> CNNDNN:
        model = CNNDNN(self._local_cnns(), self._dense_network()).to(self.device)
        model.load_state_dict(self.cnn_dnn.state_dict())
        return self._fit("transfer", model)

    def _fit(self, stage: str, model: nn.Module) -> nn.Module:
        followed = {
            "test_accuracy": lambda m: accuracy(
                predict(m, self.data.test, precision=self.experiment.precision), self.data.test.labels
            )
        }
        title = self.progress and stage
        return self._keep(
            stage,
            model,
            lambda recipe, path: fit(model, self.data, recipe, metrics=followed, checkpoint=path, progress=title),
        )

    def _keep(self, stage: str, model: nn.Module, train: Callable[[Recipe, Path | None], "pd.DataFrame"]) -> nn.Module:
        """Train a stage, with a checkpoint named by all that determines it."""
        recipe, path = self.experiment.recipe(stage), None
        if self.folder is not None:
            path = self.folder / "checkpoints" / f"{stage.replace(' ', '-')}-{self._stage_key(stage)[:16]}.pt"
        self.histories[stage] = train(recipe, path)
        self.sizes[stage] = count_parameters(model)
        return model.to(self.device)

    def _stage_key(self, stage: str) -> str:
        e = self.experiment
        content = {
            "data": [e.dataset, e.options, e.train_size, e.seed if e.train_size else None],
            "net": [e.backbone, e.width, e.seed],
            "windows": None if stage == "global" else self.decomposition.bounds,
            "recipes": {
                s: asdict(e.recipe(s))
                for s in STRATEGIES["transfer" if stage == "transfer" else "cnn-dnn"]
                if stage in ("transfer", "dense network")
            }
            | {stage: asdict(e.recipe(stage))},
            "engine": e.engine,
            "device": self.device.type,
            "code": records.code_hash(),
        }
        return records.key(content)

    def _fresh(self, make: Callable[[], Any]) -> Any:
        """A model with initial weights that the seed alone determines."""
        with torch.random.fork_rng():
            torch.manual_seed(self.experiment.seed)
            return make()

    def _local_cnns(self) -> LocalCNNs:
        return LocalCNNs(self.experiment.backbone, self.decomposition, **self._size())

    def _dense_network(self) -> DenseAggregator:
        return DenseAggregator(len(self.decomposition), self.data.num_classes)

    def _size(self) -> dict[str, int]:
        return {"in_channels": self.data.channels, "num_classes": self.data.num_classes, "width": self.experiment.width}

    # ── predictions ──

    def local_probabilities(self, half: str) -> Tensor:
        """(n, N, K) of the trained local CNNs, computed once."""
        if half not in self._local_probabilities:
            self._local_probabilities[half] = self._predict(self.local, half)
        return self._local_probabilities[half]

    @cached_property
    def _local_probabilities(self) -> dict[str, Tensor]:
        return {}

    def _predict(self, model: nn.Module, half: str) -> Tensor:
        return predict(model, getattr(self.data, half), precision=self.experiment.precision)

    def probabilities(self, strategy: str, half: str) -> Tensor:
        """(n, K), for "local" (n, N, K), on the "train" or "test" images."""
        match strategy:
            case "global":
                return self._predict(self.global_cnn, half)
            case "local":
                return self.local_probabilities(half)
            case "average":
                return average_probability(self.local_probabilities(half))
            case "vote":
                return majority_vote(self.local_probabilities(half))
            case "cnn-dnn":
                head = self.cnn_dnn.head
                with torch.no_grad():
                    return head(self.local_probabilities(half).to(self.device)).softmax(-1).cpu()
            case "coherent":
                return self._predict(self.coherent, half)
            case "transfer":
                return self._predict(self.transfer, half)
        raise AssertionError(strategy)

    # ── what is left ──

    def rows(self) -> list[dict[str, Any]]:
        return [row for strategy in self.experiment.strategies for row in self._rows(strategy)]

    def _rows(self, strategy: str) -> list[dict[str, Any]]:
        e, stages = self.experiment, STRATEGIES[strategy]
        reached = {}
        for half in ("train", "test"):
            value = accuracy(self.probabilities(strategy, half), getattr(self.data, half).labels)
            reached[half] = value if strategy == "local" else [value]
        seconds = sum(float(self.histories[stage]["seconds"].sum()) for stage in stages)
        size = self.sizes["transfer"] if strategy == "transfer" else sum(self.sizes[stage] for stage in stages)
        names = self.decomposition.names if strategy == "local" else ("",)
        point = {key: getattr(e, key) for key in ("dataset", "backbone", "width", "grid", "overlap")}
        return [
            {
                **point,
                "strategy": strategy,
                "subdomain": name,
                "seed": e.seed,
                "epochs": e.epochs,
                "train_accuracy": reached["train"][i],
                "test_accuracy": reached["test"][i],
                "parameters": size // len(names),
                "seconds": round(seconds, 3),
            }
            for i, name in enumerate(names)
        ]

    def arrays(self) -> dict[str, np.ndarray]:
        small = np.uint8 if self.data.num_classes <= 256 else np.int64
        arrays = {"labels": self.data.test.labels.numpy().astype(small)}
        for strategy in self.experiment.strategies:
            arrays[f"predicted/{strategy}"] = self.probabilities(strategy, "test").argmax(-1).numpy().T.astype(small)
        for stage, history in self.histories.items():
            arrays |= {f"history/{stage}/{column}": history[column].to_numpy() for column in history}
        return arrays
