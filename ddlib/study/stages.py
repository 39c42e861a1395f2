"""The trainings and predictions behind an experiment, each made once, when it is first asked for."""

import math
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import channels
from ..aggregation import DenseAggregator, average_probability, importance, majority_vote
from ..backbones import build, count_parameters
from ..decomposition import Decomposition
from ..devices import choose_device, choose_precision
from ..engines import train_local
from ..images import ImageSet, Split
from ..local import LocalCNNs
from ..model import CNNDNN, BothLevels
from ..ranks import from_first, train_coherent
from ..training import Recipe, accuracy, fit, predict, train_aggregator
from . import records

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
    "sub-networks": ("sub-networks",),
    "composed": ("sub-networks",),
    "channels": ("sub-networks", "channels"),
}
# strategies that only combine local probabilities: (n, N, K) → (n, K)
AGGREGATES: dict[str, Callable[[Tensor], Tensor]] = {"average": average_probability, "vote": majority_vote}
CHANNELS = ("sub-networks", "composed", "channels")  # P3's: split along the channels instead of the image
SEVERAL = ("local", "sub-networks")  # strategies of N networks, each with a figure of its own


def seconds(history: "pd.DataFrame", strategy: str, parallel: bool = False) -> float:
    """Training time of a strategy, with all the trainings that it needs; `history` is that of a record.

    `parallel` counts, for networks that were trained apart, the longest alone, as N workers would need it; NaN where
    they were trained together (fused), since none was timed alone.  Without it, NaN where ranks shared a training.
    """
    needed = STRATEGIES[strategy]
    folds = history["stage"].str.contains("fold") & ("dense network" in needed)
    own = history[history["stage"].isin(needed) | folds]
    if not parallel:
        shared = "ranks" in own and (own["ranks"] > 1).any()
        return float("nan") if shared else float(own["seconds"].sum())
    apart = own["stage"].str.startswith(SEVERAL)
    longest = own["seconds_longest"] if "seconds_longest" in own else own["seconds"] * float("nan")
    return float(own["seconds"].where(~apart, longest).sum(skipna=False))


class Stages:
    """The trainings and predictions of one `Experiment`."""

    def __init__(self, experiment: Any, data: ImageSet, folder: Path | None, progress: bool):
        self.experiment, self.data, self.folder, self.progress = experiment, data, folder, progress
        self.device = choose_device("auto")
        self.decomposition = experiment.decomposition(data)
        self.histories: dict[str, pd.DataFrame] = {}
        self.sizes: dict[str, int] = {}
        if experiment.batch_size > len(data.train):
            raise ValueError(f"batch_size {experiment.batch_size} is larger than the data: {len(data.train)} images.")
        folds = experiment.out_of_fold or 1
        left = len(data.train) - math.ceil(len(data.train) / folds) if folds > 1 else len(data.train)
        if experiment.batch_size > left:
            told = f"what {folds} folds leave to train on"
            raise ValueError(f"batch_size {experiment.batch_size} is larger than {told}: {left} images.")
        if set(experiment.strategies) & {*CHANNELS}:
            subs = self._sub_networks()
            channels.compose(subs)  # what cannot be composed fails now, not after the training
            share = len(data.train) // len(subs)
            if experiment.samples == "shares" and experiment.batch_size > share:
                raise ValueError(
                    f"batch_size {experiment.batch_size} is larger than a sub-network's share: {share} images."
                )

    # ── trainings ──

    @cached_property
    def global_cnn(self) -> nn.Module:
        net = self._fresh(lambda: build(self.experiment.backbone, **self._size(), dims=len(self.data.image_shape)))
        return self._fit("global", net)

    @cached_property
    def local(self) -> LocalCNNs:
        return self._train_local("local", self._fresh(self._local_cnns), self.data.train)

    def _train_local(self, stage: str, local: LocalCNNs, images: Split | list[Split]) -> LocalCNNs:
        options = {"engine": self.experiment.engine, "progress": self.progress and stage.replace("local", "local CNNs")}
        return self._keep(
            stage, local, lambda recipe, path: train_local(local, images, recipe, checkpoint=path, **options)
        )

    @cached_property
    def cnn_dnn(self) -> CNNDNN:
        model = CNNDNN(self.local, self._fresh(self._dense_network))
        p = self._out_of_fold() if self.experiment.out_of_fold else self.local_probabilities("train")
        options = {"probabilities": p, "progress": self.progress and "dense network"}
        self._keep(
            "dense network",
            model.head,
            lambda recipe, path: train_aggregator(model, self.data, recipe, checkpoint=path, **options),
        )
        return model

    def _out_of_fold(self) -> Tensor:
        """(n, N, K): each training image's local probabilities by local CNNs that were trained on the other folds."""
        train, folds = self.data.train, self.experiment.out_of_fold
        fold = torch.empty(len(train), dtype=torch.int64)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self.experiment.seed))
        order = order[train.labels[order].argsort(stable=True)]  # each class in proportion
        fold[order] = torch.arange(len(train)) % folds
        p = torch.empty(len(train), len(self.decomposition), self.data.num_classes)
        for k in range(folds):
            others, own = train.some(fold != k), train.some(fold == k)
            local = self._train_local(f"local, fold {k + 1}", self._fresh(self._local_cnns), others)
            p[fold == k] = predict(local, own, precision=self.experiment.precision)
        return p

    @cached_property
    def coherent(self) -> CNNDNN:
        return self._fit("coherent", self._fresh(lambda: CNNDNN(self._local_cnns(), self._dense_network())))

    @cached_property
    def transfer(self) -> CNNDNN:
        model = CNNDNN(self._local_cnns(), self._dense_network()).to(self.device)
        model.load_state_dict(from_first(lambda: {k: v.cpu() for k, v in self.cnn_dnn.state_dict().items()}))
        return self._fit("transfer", model)

    @cached_property
    def sub_networks(self) -> LocalCNNs:
        e, local = self.experiment, self._fresh(self._sub_networks)
        shared = e.samples == "shares"
        images = channels.shares(self.data.train, len(local), e.seed) if shared else self.data.train
        return self._train_local("sub-networks", local, images)

    @cached_property
    def composed(self) -> nn.Module:
        return channels.compose(self.sub_networks)

    @cached_property
    def channels(self) -> nn.Module:
        return self._fit("channels", channels.compose(self.sub_networks))

    def _sub_networks(self) -> LocalCNNs:
        """P sub-networks of the global network's kind, each with a P-th of its width, on whole images or windows."""
        e, shape = self.experiment, self.data.image_shape
        parts = e.channel_parts or len(self.decomposition)
        whole = {f"channels {p}": [(0, length) for length in shape] for p in range(parts)}
        windows = self.decomposition if e.samples == "windows" else Decomposition.regions(shape, whole)
        if e.width % parts or len(windows) != parts:
            raise ValueError(f"width {e.width} and {len(windows)} windows do not fit {parts} sub-networks.")
        return LocalCNNs(e.backbone, windows, **self._size(), local_width=e.width // parts)

    def _fit(self, stage: str, model: nn.Module) -> nn.Module:
        test = self.data.test
        followed = {
            "test_accuracy": lambda m: accuracy(
                predict(model if both else m, test, precision=self.experiment.precision), test.labels
            )
        }
        both = self.experiment.local_losses and stage in ("coherent", "transfer")
        trained = BothLevels(model) if both else model
        train = train_coherent if isinstance(trained, CNNDNN) else fit  # on all ranks, where there are several
        options = {"metrics": followed, "progress": self.progress and stage}
        return self._keep(
            stage, model, lambda recipe, path: train(trained, self.data, recipe, checkpoint=path, **options)
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
        """A hash of all that determines the weights of a stage."""
        e = self.experiment
        before = next((STRATEGIES[s] for s in STRATEGIES if STRATEGIES[s][-1] == stage), (stage,))
        split = "sub-networks" in before
        content = {
            "data": self.data.digest,
            "net": [e.backbone, e.width, e.seed],
            "windows": None if stage == "global" else self.decomposition.bounds,
            "sub-networks": [e.channel_parts, e.samples] if split else None,
            "recipes": {s: asdict(e.recipe(s)) for s in {*before, stage}},
            "ours": [e.out_of_fold if len(before) > 1 or "fold" in stage else None, e.local_losses],
            "engine": e.engine,
            "device": [self.device.type, choose_precision(e.precision, self.device), torch.get_num_threads()],
            "versions": [torch.__version__, records.RESULTS],
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
        if strategy in AGGREGATES:
            return AGGREGATES[strategy](self.local_probabilities(half))
        match strategy:
            case "global":
                return self._predict(self.global_cnn, half)
            case "local":
                return self.local_probabilities(half)
            case "cnn-dnn":
                head = self.cnn_dnn.head
                with torch.no_grad():
                    return head(self.local_probabilities(half).to(self.device)).softmax(-1).cpu()
            case "coherent":
                return self._predict(self.coherent, half)
            case "transfer":
                return self._predict(self.transfer, half)
            case "sub-networks":
                return self._predict(self.sub_networks, half)
            case "composed":
                return self._predict(self.composed, half)
            case "channels":
                return self._predict(self.channels, half)
        raise AssertionError(strategy)

    # ── what is left ──

    def rows(self) -> list[dict[str, Any]]:
        return [row for strategy in self.experiment.strategies for row in self._rows(strategy)]

    def _rows(self, strategy: str) -> list[dict[str, Any]]:
        import pandas as pd

        e = self.experiment
        several, reached = strategy in SEVERAL, {}
        for half in ("train", "test"):
            value = accuracy(self.probabilities(strategy, half), getattr(self.data, half).labels)
            reached[half] = value if several else [value]
        history = pd.concat([frame.assign(stage=stage) for stage, frame in self.histories.items()])
        names = ("",)
        if several:
            names = (self.local if strategy == "local" else self.sub_networks).decomposition.names
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
                "parameters": self._parameters(strategy) // len(names),
                "seconds": round(seconds(history, strategy), 3),
            }
            for i, name in enumerate(names)
        ]

    def _parameters(self, strategy: str) -> int:
        if strategy == "composed":
            return count_parameters(self.composed)
        stages = STRATEGIES[strategy]  # of which the last of three contains the others
        return self.sizes[stages[-1]] if strategy in ("transfer", "channels") else sum(self.sizes[s] for s in stages)

    def arrays(self) -> dict[str, np.ndarray]:
        small = np.uint8 if self.data.num_classes <= 256 else np.int64
        arrays = {"labels": self.data.test.labels.numpy().astype(small)}
        labels = self.data.test.labels
        for strategy in self.experiment.strategies:
            p = self.probabilities(strategy, "test")
            arrays[f"predicted/{strategy}"] = p.argmax(-1).numpy().T.astype(small)
            if p.shape[-1] == 2:
                arrays[f"score/{strategy}"] = p[..., 1].numpy().T.astype(np.float32)
        if "cnn-dnn" in self.experiment.strategies:
            arrays["importance"] = np.array(importance(self.cnn_dnn.head, self.local_probabilities("test"), labels))
        if set(self.experiment.strategies) & {*CHANNELS} and self.experiment.samples != "windows":
            log_p = predict(self.sub_networks, self.data.test, precision="fp32").log()  # bf16 would round the bounds
            arrays |= {f"bounds/{name}": np.array(x) for name, x in channels.bounds(log_p, labels).items()}
        for stage, history in self.histories.items():
            arrays |= {f"history/{stage}/{column}": history[column].to_numpy() for column in history}
        return arrays
