"""The papers' procedures: from a data set and its windows to trained networks, a row of one table each.

    global       one CNN on whole images, which all else is compared with
    two steps    local CNNs, each alone; then average, vote, or a dense network on their probabilities    (P1, P2)
    coherent     local CNNs and dense network as one model, from random weights                           (P1)
    transfer     the same model, from the local CNNs and dense network of the two steps                   (P1)
    channels     split a network's width, train the sub-networks, compose them, train the whole on        (P3)

`Trainings("vgg9", decomposition, data, width=32).model("transfer")` carries a procedure out; what `study.Experiment`
adds to it are checkpoints, records and engines.  A new strategy is a function and a row of `STRATEGIES`.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import channels
from ._internal import checks
from ._internal.devices import choose_device
from ._internal.losses import balanced_loss
from .aggregation import TIES, DenseAggregator, average_probability, geometric_mean, majority_vote
from .decomposition import Decomposition
from .images import ImageSet, Split
from .local import LocalCNNs
from .model import CNNDNN, BothLevels
from .networks.backbones import Builder, build
from .training import RECIPES, Recipe, fit, predict, train_aggregator

if TYPE_CHECKING:
    import pandas as pd

SAMPLES = ("all", "shares", "windows")  # what a sub-network trains on


class Trainings:
    """The trainings behind the strategies, on one data set and decomposition, each made once, when first asked for.

    Args:
        backbone: of the global and the local CNNs, see `backbones.build`.
        decomposition: the windows.
        width: of the global CNN; `local_width` as in `LocalCNNs`.
        recipes: by training, those of `RECIPES` where none is given.
        seed: of the initial weights.
        head: options of the dense network, see `DenseAggregator`.
        ties: of the vote, see `majority_vote`.
        local_losses: adds the local losses to the coherent model's and transfer's, see `BothLevels`.
        balanced: weighs each class by the inverse of its frequency in every loss.
        channel_parts: sub-networks into which the channels are split; None for as many as subdomains.
        samples: what a sub-network trains on: "all" images, its share of them ("shares"), or its window ("windows").

    Attributes:
        histories: a row an epoch, for each training that was made.
    """

    def __init__(
        self,
        backbone: str | Builder,
        decomposition: Decomposition,
        data: ImageSet,
        *,
        width: int,
        local_width: str | int = "proportional",
        recipes: Mapping[str, Recipe] = RECIPES,
        seed: int = 0,
        head: Mapping[str, Any] | None = None,
        ties: str = "average",
        local_losses: bool = False,
        balanced: bool = False,
        channel_parts: int | None = None,
        samples: str = "all",
    ):
        for name in recipes:
            checks.one_of("training", name, RECIPES)
        checks.one_of("samples", samples, SAMPLES)
        checks.one_of("ties", ties, TIES)
        local_losses, balanced = checks.flag("local_losses", local_losses), checks.flag("balanced", balanced)
        self.backbone, self.decomposition, self.data = backbone, decomposition, data
        self.recipes, self.loss = {**RECIPES, **recipes}, balanced_loss(data.train.labels) if balanced else None
        self.size = {"in_channels": data.channels, "num_classes": data.num_classes, "width": width}
        self.local_width, self.seed, self.head, self.ties = local_width, seed, dict(head or {}), ties
        self.local_losses, self.channel_parts, self.samples = local_losses, channel_parts, samples
        self.device = choose_device(self.recipes["global"].device)
        self.histories: dict[str, pd.DataFrame] = {}
        self._models: dict[str, nn.Module] = {}
        self._predicted: dict[tuple[str, str], Tensor] = {}

    def model(self, strategy: str) -> nn.Module:
        """The trained network of a strategy; of one that only combines local probabilities, the local CNNs."""
        row = STRATEGIES[checks.one_of("strategy", strategy, STRATEGIES)]
        if row.combine:
            return self.model("local")
        if strategy not in self._models:
            self._models[strategy] = row.make(self)
        return self._models[strategy]

    def probabilities(self, strategy: str, half: str = "test") -> Tensor:
        """(n, K), for several networks (n, N, K), on the "train" or "test" images; computed once."""
        if (strategy, half) not in self._predicted:
            self._predicted[strategy, half] = self._predict(strategy, half)
        return self._predicted[strategy, half]

    def _predict(self, strategy: str, half: str) -> Tensor:
        row, model = STRATEGIES[checks.one_of("strategy", strategy, STRATEGIES)], self.model(strategy)
        if row.combine:
            return row.combine(self.probabilities("local", half), self)
        if row.trainings[-1] in HEADS:
            with torch.no_grad():
                return model.head(self.probabilities("local", half).to(self.device)).softmax(-1).cpu()
        return predict(model, getattr(self.data, half), precision=self.recipes["global"].precision)

    # ── what the procedures are made of ──

    def new(self, make: Callable[[], Any]) -> Any:
        """A model with initial weights that the seed alone determines."""
        with torch.random.fork_rng(devices=[]):  # networks are built on the CPU
            torch.manual_seed(self.seed)
            return make().to(self.device)

    def global_cnn(self) -> nn.Module:
        shape = self.data.image_shape
        return build(self.backbone, **self.size, dims=len(shape), window_shape=shape)

    def local_cnns(self) -> LocalCNNs:
        return LocalCNNs(self.backbone, self.decomposition, **self.size, local_width=self.local_width)

    def dense_network(self, **options: Any) -> DenseAggregator:
        return DenseAggregator(len(self.decomposition), self.data.num_classes, **(options or self.head))

    def cnn_dnn(self) -> CNNDNN:
        return CNNDNN(self.local_cnns(), self.dense_network())

    def sub_networks(self) -> LocalCNNs:
        """P sub-networks of the global network's kind, each with a P-th of its width, on whole images or windows."""
        shape, width = self.data.image_shape, self.size["width"]
        parts = self.channel_parts or self.decomposition.num_subdomains
        whole = {f"channels {p}": [(0, length) for length in shape] for p in range(parts)}
        windows = self.decomposition if self.samples == "windows" else Decomposition.regions(shape, whole)
        if width % parts or len(windows) != parts:
            raise ValueError(f"width {width} and {len(windows)} windows do not fit {parts} sub-networks.")
        return LocalCNNs(self.backbone, windows, **self.size, local_width=width // parts)

    # ── how they are trained; `study` does these with checkpoints, engines and ranks ──

    def fit(self, training: str, model: nn.Module, train: Callable = fit, **options: Any) -> nn.Module:
        """Train a whole model on all training images."""
        trained = BothLevels(model) if self.local_losses and isinstance(model, CNNDNN) else model
        self.carry_out(training, trained, train, trained, self.data, **options)
        return model

    def train_local(self, training: str, local: LocalCNNs, images: Split | list[Split]) -> LocalCNNs:
        """Train the local CNNs, each alone: side by side, which is the same, or each on images of its own."""
        if isinstance(images, Split):
            self.carry_out(training, local, fit, local, images)
            return local
        for index, own in enumerate(images):
            part = local.part([index])
            self.carry_out(f"{training}, {index}", part, fit, part, own)
            local.load_part([index], part)
        return local

    def train_head(self, training: str, head: DenseAggregator) -> CNNDNN:
        """Train a dense network on what the trained local CNNs say of the training images."""
        model = CNNDNN(self.model("local"), head)
        self.carry_out(training, head, train_aggregator, model, self.data, probabilities=self.seen_by_head())
        return model

    def carry_out(self, training: str, model: nn.Module, train: Callable, *arguments: Any, **options: Any) -> None:
        """Call `train`, which trains `model`, with the recipe of that name; its history is kept."""
        recipe = self.recipes[training.partition(",")[0]]  # "local, fold 1" trains as "local"
        self.histories[training] = train(*arguments, recipe, **{"loss": self.loss, "progress": training} | options)

    def seen_by_head(self) -> Tensor:
        """(n, N, K) local probabilities of the training images, on which the dense network learns."""
        return self.probabilities("local", "train")


# ── the procedures: from what is there to a trained network ──


def global_cnn(run: Trainings) -> nn.Module:
    """One CNN on whole images."""
    return run.fit("global", run.new(run.global_cnn))


def local_cnns(run: Trainings) -> LocalCNNs:
    """N local CNNs, each alone on its window, without communication (P1, P2)."""
    return run.train_local("local", run.new(run.local_cnns), run.data.train)


def cnn_dnn(run: Trainings) -> CNNDNN:
    """Two steps: the local CNNs first, then a dense network on their probabilities, the coarse problem (P2)."""
    return run.train_head("dense network", run.new(run.dense_network))


def correction(run: Trainings) -> CNNDNN:
    """Two steps, with a linear coarse problem that starts as the geometric mean and learns to correct it (ours)."""
    linear = {"hidden": (), "log_probabilities": True, "start": "geometric"}
    return run.train_head("correction", run.new(lambda: run.dense_network(**linear)))


def coherent(run: Trainings) -> CNNDNN:
    """Local CNNs and dense network as one model, end to end from random weights (P1)."""
    return run.fit("coherent", run.new(run.cnn_dnn))


def transfer(run: Trainings) -> CNNDNN:
    """The coherent model, end to end from the trained local CNNs and dense network: a preconditioned start (P1)."""
    return run.fit("transfer", copy.deepcopy(run.model("cnn-dnn")))


def sub_networks(run: Trainings) -> LocalCNNs:
    """P networks, each with a P-th of the channels, each alone on its samples (P3)."""
    subs = run.new(run.sub_networks)
    images = channels.shares(run.data.train, len(subs), run.seed) if run.samples == "shares" else run.data.train
    return run.train_local("sub-networks", subs, images)


def composed(run: Trainings) -> nn.Module:
    """The sub-networks side by side, as the global network (P3)."""
    return channels.compose(run.model("sub-networks"))


def composed_and_trained(run: Trainings) -> nn.Module:
    """The global network, trained from the composed sub-networks (P3)."""
    return run.fit("channels", channels.compose(run.model("sub-networks")))


# ── the table ──


@dataclass(frozen=True)
class Strategy:
    """What is known of a strategy, wherever it is used.

    Attributes:
        title: its name in tables and figures.
        trainings: that it needs, in their order; the last one is its own.
        make: the procedure; or, where local probabilities are only combined,
        combine: a function of these (n, N, K) and the `Trainings`, → (n, K).
        several: it is N networks, with a figure each.
        usual: `Experiment` compares it, unless it is asked for others.
        options: those of `Experiment` that change its own training.
        colour, marker: in figures (Okabe and Ito's colours; the marker tells them apart in grey).
    """

    title: str
    trainings: tuple[str, ...]
    make: Callable[[Trainings], nn.Module] | None = None
    combine: Callable[[Tensor, Trainings], Tensor] | None = None
    several: bool = False
    usual: bool = False
    options: tuple[str, ...] = ()
    colour: str = "#F0E442"
    marker: str = "*"

    @property
    def of_channels(self) -> bool:
        """It splits a network's channels (P3), not the image."""
        return "sub-networks" in self.trainings

    @property
    def trained_twice(self) -> bool:
        """Its parts are trained for E epochs, and then the whole for E more."""
        return len(self.trainings) > 1 and self.trainings[-1] not in HEADS


HEADS = ("dense network", "correction")  # trainings of a dense network alone
_LOCAL, _HEAD = ("local_width", "coarse"), ("log_probabilities", "dense_hidden", "dense_start")
_COHERENT, _SPLIT = ("local_losses", *_LOCAL, *_HEAD), ("channel_parts", "samples")
_TWO_STEPS, _SUBS = ("local", "dense network"), ("sub-networks",)
_TRANSFER = (*_TWO_STEPS, "transfer")

STRATEGIES: dict[str, Strategy] = {
    "global": Strategy("global", ("global",), global_cnn, usual=True, colour="#000000", marker="s"),
    "local": Strategy(
        "local", ("local",), local_cnns, several=True, usual=True, options=_LOCAL, colour="#999999", marker="."
    ),
    "average": Strategy(
        "average", ("local",), combine=lambda p, _: average_probability(p), usual=True, colour="#56B4E9", marker="o"
    ),
    "vote": Strategy(
        "vote", ("local",), combine=lambda p, run: majority_vote(p, run.ties), usual=True, colour="#0072B2", marker="v"
    ),
    "geometric": Strategy(
        "geometric mean", ("local",), combine=lambda p, _: geometric_mean(p), colour="#0B3C5D", marker="p"
    ),
    "cnn-dnn": Strategy(
        "CNN-DNN", _TWO_STEPS, cnn_dnn, usual=True, options=("out_of_fold", *_HEAD), colour="#D55E00", marker="D"
    ),
    "correction": Strategy(
        "coarse correction", ("local", "correction"), correction, options=("out_of_fold",), colour="#8C2D04", marker="d"
    ),
    "coherent": Strategy(
        "coherent", ("coherent",), coherent, usual=True, options=_COHERENT, colour="#CC79A7", marker="X"
    ),
    "transfer": Strategy(
        "transfer", _TRANSFER, transfer, usual=True, options=("local_losses",), colour="#009E73", marker="P"
    ),
    "sub-networks": Strategy(
        "sub-networks", _SUBS, sub_networks, several=True, options=_SPLIT, colour="#777777", marker="<"
    ),
    "composed": Strategy("composed", _SUBS, composed, colour="#882255", marker="^"),
    "channels": Strategy("channels", (*_SUBS, "channels"), composed_and_trained, colour="#E69F00", marker="h"),
}
