"""The trainings and predictions behind a point of a table, each made once, when it is first asked for."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import channels, checks
from ..aggregation import DenseAggregator, average_probability, geometric_mean, majority_vote
from ..backbones import build
from ..decomposition import Decomposition
from ..devices import choose_device, choose_precision
from ..engines import train_local
from ..images import ImageSet, Split
from ..local import LocalCNNs
from ..model import CNNDNN, BothLevels
from ..ranks import from_first, train_coherent
from ..training import accuracy, fit, predict, train_aggregator
from . import records

if TYPE_CHECKING:
    import pandas as pd

# strategy → the trainings that it needs, in their order
STRATEGIES: dict[str, tuple[str, ...]] = {
    "global": ("global",),
    "local": ("local",),
    "average": ("local",),
    "vote": ("local",),
    "geometric": ("local",),
    "cnn-dnn": ("local", "dense network"),
    "correction": ("local", "correction"),
    "coherent": ("coherent",),
    "transfer": ("local", "dense network", "transfer"),
    "sub-networks": ("sub-networks",),
    "composed": ("sub-networks",),
    "channels": ("sub-networks", "channels"),
}
CHANNELS = ("sub-networks", "composed", "channels")  # P3's: split along the channels instead of the image
SEVERAL = ("local", "sub-networks")  # strategies of N networks, each with a figure of its own
# strategies that only combine local probabilities: (n, N, K) → (n, K)
AGGREGATES: dict[str, Callable[..., Tensor]] = {
    "average": average_probability,
    "vote": majority_vote,
    "geometric": geometric_mean,
}


def seconds(history: "pd.DataFrame", strategy: str, parallel: bool = False) -> float:
    """Training time of a strategy, with all the trainings that it needs; `history` is that of a record.

    `parallel` counts, for networks that were trained apart, the longest alone, as N workers would need it; NaN where
    they were trained together (fused), since none was timed alone.  Without it, NaN where ranks shared a training.
    """
    needed, stage = STRATEGIES[strategy], history["stage"]
    learns_from_folds = bool({"dense network", "correction"} & {*needed})
    own = history[stage.isin(needed) | (stage.str.contains("fold") & learns_from_folds)]
    if not parallel:
        return float("nan") if np.any(own.get("ranks", 1) > 1) else float(own["seconds"].sum())
    longest = own.get("seconds_longest", float("nan"))
    return float(own["seconds"].mask(own["stage"].str.startswith(SEVERAL), longest).sum(skipna=False))


def hidden_layers(text: str) -> tuple[int, ...]:
    """Hidden layers of the dense network: "none" → (), "128 64" → (128, 64)."""
    try:
        return () if text == "none" else tuple(checks.whole("dense_hidden", int(width), 1) for width in text.split())
    except ValueError:
        raise ValueError(f"dense_hidden must be 'none' or widths like '128 64', got {text!r}.") from None


class Stages:
    """The trainings of a point, in the order of the papers, and the predictions of its strategies.

    Attributes:
        histories: a row an epoch, for each training that was made.
    """

    def __init__(self, point: Any, data: ImageSet, folder: Path | None, progress: bool):
        """`point` is an `Experiment`; checkpoints are kept in `folder`, below checkpoints/, None keeps none.

        Raises:
            ValueError: what does not fit the images; before any training.
        """
        self.point, self.data, self.folder, self.progress = point, data, folder, progress
        self.device = choose_device("auto")
        self.decomposition = point.decomposition(data)
        self.size = {"in_channels": data.channels, "num_classes": data.num_classes, "width": point.width}
        self.histories: dict[str, pd.DataFrame] = {}
        self._models: dict[str, nn.Module] = {}
        self._folds: Tensor | None = None
        self._predicted: dict[tuple[str, str], Tensor] = {}
        images = [(len(data.train), "the data")]
        if point.out_of_fold:
            left = len(data.train) * (point.out_of_fold - 1) // point.out_of_fold
            images.append((left, f"what {point.out_of_fold} folds leave to train on"))
        if {*point.strategies} & {*CHANNELS}:
            sub_networks = self._sub_networks()
            channels.compose(sub_networks)  # what cannot be composed fails now, not after the training
            if point.samples == "shares":
                images.append((len(data.train) // len(sub_networks), "a sub-network's share"))
        for count, what in images:
            if point.batch_size > count:
                raise ValueError(f"batch_size {point.batch_size} is larger than {what}: {count} images.")

    # ── trainings ──

    def model(self, strategy: str) -> nn.Module:
        """The trained network of a strategy; of those in `AGGREGATES`, the local CNNs."""
        strategy = "local" if strategy in AGGREGATES else strategy
        if strategy not in self._models:
            self._models[strategy] = self._make(strategy)
        return self._models[strategy]

    def _make(self, strategy: str) -> nn.Module:
        point, data = self.point, self.data
        match strategy:
            case "global":
                model = self._fresh(lambda: build(point.backbone, **self.size, dims=len(data.image_shape)))
            case "local":
                return self._train_local("local", self._fresh(self._local_cnns), data.train)
            case "cnn-dnn":
                return self._train_head("dense network", self._fresh(self._dense_network))
            case "correction":  # linear, on log p, of the geometric mean
                number, classes = len(self.decomposition), data.num_classes
                head = DenseAggregator(number, classes, hidden=(), log_probabilities=True, start="geometric")
                return self._train_head("correction", head)
            case "coherent":
                model = self._fresh(self._cnn_dnn)
            case "transfer":
                model = self._cnn_dnn().to(self.device)
                trained = from_first(lambda: {k: v.cpu() for k, v in self.model("cnn-dnn").state_dict().items()})
                model.load_state_dict(trained)
            case "sub-networks":
                local, shared = self._fresh(self._sub_networks), point.samples == "shares"
                images = channels.shares(data.train, len(local), point.seed) if shared else data.train
                return self._train_local("sub-networks", local, images)
            case "composed":
                return channels.compose(self.model("sub-networks"))
            case "channels":
                model = channels.compose(self.model("sub-networks"))
        return self._fit(strategy, model)

    def _train_local(self, stage: str, local: LocalCNNs, images: Split | list[Split]) -> LocalCNNs:
        return self._train(stage, local, train_local, local, images, engine=self.point.engine)

    def _train_head(self, stage: str, head: DenseAggregator) -> CNNDNN:
        model = CNNDNN(self.model("local"), head)
        if self.point.out_of_fold and self._folds is None:
            self._folds = self._out_of_fold()
        p = self._folds if self.point.out_of_fold else self.probabilities("local", "train")
        self._train(stage, head, train_aggregator, model, self.data, probabilities=p)
        return model

    def _fit(self, stage: str, model: nn.Module) -> nn.Module:
        test, precision = self.data.test, self.point.precision

        def test_accuracy(trained: nn.Module) -> float:  # on ranks, of their share of the model
            network = trained.model if isinstance(trained, BothLevels) else trained
            return accuracy(predict(network, test, precision=precision), test.labels)

        both = self.point.local_losses and stage in ("coherent", "transfer")
        trained = BothLevels(model) if both else model
        train = train_coherent if isinstance(trained, CNNDNN) else fit  # on all ranks, where there are several
        return self._train(stage, model, train, trained, self.data, metrics={"test_accuracy": test_accuracy})

    def _train(self, stage: str, model: nn.Module, train: Callable, *arguments: Any, **options: Any) -> nn.Module:
        """Train with the recipe of the stage, and a checkpoint named by all that determines the weights."""
        if self.folder is not None:
            name = f"{stage.replace(' ', '-')}-{self._key(stage)[:16]}.pt"
            options["checkpoint"] = self.folder / "checkpoints" / name
        self.histories[stage] = train(*arguments, self.point.recipe(stage), progress=self.progress and stage, **options)
        return model.to(self.device)

    def _out_of_fold(self) -> Tensor:
        """(n, N, K): each training image's local probabilities by local CNNs that were trained on the other folds."""
        train, folds = self.data.train, self.point.out_of_fold
        fold = torch.empty(len(train), dtype=torch.int64)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self.point.seed))
        order = order[train.labels[order].argsort(stable=True)]  # each class in proportion
        fold[order] = torch.arange(len(train)) % folds
        p = torch.empty(len(train), len(self.decomposition), self.data.num_classes)
        for k in range(folds):
            others, own = train.some(fold != k), train.some(fold == k)
            local = self._train_local(f"local, fold {k + 1}", self._fresh(self._local_cnns), others)
            p[fold == k] = predict(local, own, precision=self.point.precision)
        return p

    def _fresh(self, make: Callable[[], Any]) -> Any:
        """A model with initial weights that the seed alone determines."""
        with torch.random.fork_rng():
            torch.manual_seed(self.point.seed)
            return make()

    def _local_cnns(self) -> LocalCNNs:
        return LocalCNNs(
            self.point.backbone,
            self.decomposition,
            **self.size,
            local_width=self.point.local_width or "proportional",
        )

    def _dense_network(self) -> DenseAggregator:
        point, size = self.point, (len(self.decomposition), self.data.num_classes)
        options = {} if point.dense_hidden is None else {"hidden": hidden_layers(point.dense_hidden)}
        options |= {"log_probabilities": bool(point.log_probabilities), "start": point.dense_start or "random"}
        return DenseAggregator(*size, **options)

    def _cnn_dnn(self) -> CNNDNN:
        return CNNDNN(self._local_cnns(), self._dense_network())

    def _sub_networks(self) -> LocalCNNs:
        """P sub-networks of the global network's kind, each with a P-th of its width, on whole images or windows."""
        point, shape = self.point, self.data.image_shape
        parts = point.channel_parts or len(self.decomposition)
        whole = {f"channels {p}": [(0, length) for length in shape] for p in range(parts)}
        windows = self.decomposition if point.samples == "windows" else Decomposition.regions(shape, whole)
        if point.width % parts or len(windows) != parts:
            raise ValueError(f"width {point.width} and {len(windows)} windows do not fit {parts} sub-networks.")
        return LocalCNNs(point.backbone, windows, **self.size, local_width=point.width // parts)

    def _key(self, stage: str) -> str:
        """A hash of all that determines the weights of a stage: what points have in common they share."""
        point = self.point
        trainings = {needed[-1]: needed for needed in STRATEGIES.values()}.get(stage, (stage,))  # up to this one
        learns_from_folds = {"dense network", "correction"} & {*trainings} or "fold" in stage
        coherent, dense = {"coherent", "transfer"} & {*trainings}, {"coherent", "dense network"} & {*trainings}
        parts = stage not in ("global", "sub-networks", "channels")
        content = {
            "data": self.data.digest,
            "net": [point.backbone, point.width, point.seed],
            "windows": None if stage == "global" else self.decomposition.bounds,
            "sub-networks": [point.channel_parts, point.samples] if "sub-networks" in trainings else None,
            "recipes": {training: asdict(point.recipe(training)) for training in trainings},
            "out_of_fold": point.out_of_fold if learns_from_folds else None,
            "local_losses": point.local_losses if coherent else None,
            "dense network": [point.log_probabilities, point.dense_hidden, point.dense_start] if dense else None,
            "local CNNs": [point.local_width, self.decomposition.coarse] if parts else None,
            "engine": point.engine,
            "device": [self.device.type, choose_precision(point.precision, self.device), torch.get_num_threads()],
            "versions": [torch.__version__, records.RESULTS],
        }
        return records.key(content)

    # ── predictions ──

    def probabilities(self, strategy: str, half: str) -> Tensor:
        """(n, K), for several networks (n, N, K), on the "train" or "test" images; computed once."""
        if (strategy, half) not in self._predicted:
            self._predicted[strategy, half] = self._predict(strategy, half)
        return self._predicted[strategy, half]

    def _predict(self, strategy: str, half: str) -> Tensor:
        if strategy in AGGREGATES:
            ties = {"ties": self.point.ties} if strategy == "vote" and self.point.ties else {}
            return AGGREGATES[strategy](self.probabilities("local", half), **ties)
        model = self.model(strategy)
        if strategy in ("cnn-dnn", "correction"):
            with torch.no_grad():
                return model.head(self.probabilities("local", half).to(self.device)).softmax(-1).cpu()
        return predict(model, getattr(self.data, half), precision=self.point.precision)
