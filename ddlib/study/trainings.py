"""The trainings of an experiment: those of `strategies`, kept in checkpoints, by the engine that was asked for."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import channels
from .._internal import checks
from .._internal.devices import choose_precision
from ..aggregation import accuracy
from ..images import ImageSet, Split
from ..local import LocalCNNs
from ..model import CNNDNN, BothLevels
from ..parallel.executors import train_local
from ..parallel.ranks import from_first, train_coherent, world_size
from ..strategies import HEADS, STRATEGIES, Trainings
from ..training import fit, predict
from . import records
from .settings import Settings

if TYPE_CHECKING:
    import pandas as pd


def seconds(history: "pd.DataFrame", strategy: str, parallel: bool = False) -> float:
    """Training time of a strategy, with all the trainings that it needs; `history` is that of a record.

    `parallel` counts, for networks that were trained apart, the longest alone, as N workers would need it; NaN where
    they were trained together (fused), since none was timed alone.  Without it, NaN where ranks shared a training.
    """
    needed, stage = STRATEGIES[checks.one_of("strategy", strategy, STRATEGIES)].trainings, history["stage"]
    own = history[stage.isin(needed) | (stage.str.contains("fold") & bool(set(HEADS) & set(needed)))]
    if not parallel:
        return float("nan") if np.any(own.get("ranks", 1) > 1) else float(own["seconds"].sum())
    several = tuple(name for name, row in STRATEGIES.items() if row.several)
    longest = own.get("seconds_longest", float("nan"))
    return float(own["seconds"].mask(own["stage"].str.startswith(several), longest).sum(skipna=False))


class KeptTrainings(Trainings):
    """`Trainings` with what an experiment adds: checkpoints, engines, ranks, probabilities from folds.

    Args:
        settings: of the experiment.
        folder: checkpoints are kept in it, below checkpoints/; None keeps none.

    Raises:
        ValueError: what does not fit the images; before any training.
    """

    def __init__(self, settings: Settings, data: ImageSet, folder: Path | None, progress: bool):
        super().__init__(settings.backbone, settings.decomposition(data), data, **settings.trainings())
        self.settings, self.folder, self.progress = settings, folder, progress
        named = not isinstance(settings.dataset, ImageSet)  # its name and options say what shapes it has
        self.identity, self._folds = data.contents if named else data.identity, None
        images = [(len(data.train), "the data")]
        if settings.out_of_fold:
            checks.integer("out_of_fold", settings.out_of_fold, 2, len(data.train))
            left = len(data.train) * (settings.out_of_fold - 1) // settings.out_of_fold
            images.append((left, f"what {settings.out_of_fold} folds leave to train on"))
        if any(STRATEGIES[strategy].of_channels for strategy in settings.strategies):
            sub_networks = self.new(self.sub_networks)
            channels.compose(sub_networks)  # what cannot be composed fails now, not after the training
            if settings.samples == "shares":
                images.append((len(data.train) // len(sub_networks), "a sub-network's share"))
        for count, what in images:
            if settings.batch_size > count:
                raise ValueError(f"batch_size {settings.batch_size} is larger than {what}: {count} images.")
        needed = {training for strategy in settings.strategies for training in STRATEGIES[strategy].trainings}
        for training, make in {"global": self.global_cnn, "local": self.local_cnns, "coherent": self.cnn_dnn}.items():
            if training in needed:
                self.new(make)  # so does what does not fit the images or windows

    def fit(self, training: str, model: nn.Module) -> nn.Module:
        def test_accuracy(trained: nn.Module) -> float:  # on ranks, of what each holds of the model
            network = trained.model if isinstance(trained, BothLevels) else trained
            return accuracy(predict(network, self.data.test, precision=self.settings.precision), self.data.test.labels)

        shared = isinstance(model, CNNDNN) and not self.local_losses  # on all ranks, where there are several
        return super().fit(training, model, train_coherent if shared else fit, metrics={"test_accuracy": test_accuracy})

    def train_local(self, training: str, local: LocalCNNs, images: Split | list[Split]) -> LocalCNNs:
        self.carry_out(training, local, train_local, local, images, engine=self.settings.engine)
        return local

    def seen_by_head(self) -> Tensor:
        if not self.settings.out_of_fold:
            return super().seen_by_head()
        if self._folds is None:
            self._folds = self._out_of_fold()
        return self._folds

    def _out_of_fold(self) -> Tensor:
        """(n, N, K): each training image's local probabilities by local CNNs that were trained on the other folds."""
        train, folds = self.data.train, self.settings.out_of_fold
        fold = torch.empty(len(train), dtype=torch.int64)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(self.seed))
        order = order[train.labels[order].argsort(stable=True)]  # each class in proportion
        fold[order] = torch.arange(len(train)) % folds
        p = torch.empty(len(train), len(self.decomposition), self.data.num_classes)
        for k in range(folds):
            others, own = train.some(fold != k), train.some(fold == k)
            local = self.train_local(f"local, fold {k + 1}", self.new(self.local_cnns), others)
            p[fold == k] = predict(local, own, precision=self.settings.precision)
        return p

    def carry_out(self, training: str, model: nn.Module, train: Callable, *arguments: Any, **options: Any) -> None:
        """With a checkpoint named by all that determines the weights.

        What is not trained on all ranks is trained on the first, and given to the others.
        """
        options["progress"] = self.progress and training
        if self.folder is not None:
            name = f"{training.replace(' ', '-')}-{self._key(training)[:16]}.pt"
            options["checkpoint"] = self.folder / "checkpoints" / name
        trained = partial(super().carry_out, training, model, train, *arguments, **options)
        if train is train_coherent or world_size() == 1:
            trained()
            return

        def on_first() -> tuple["pd.DataFrame", dict[str, Tensor]]:
            trained()
            return self.histories[training], {key: value.cpu() for key, value in model.state_dict().items()}

        self.histories[training], state = from_first(on_first)
        model.load_state_dict(state)

    def _key(self, training: str) -> str:
        """A hash of all that determines the weights of a training: what points have in common they share."""
        settings, name = self.settings, training.partition(",")[0]
        needed = next(row.trainings for row in STRATEGIES.values() if row.trainings[-1] == name)
        options = {option for row in STRATEGIES.values() if row.trainings[-1] in needed for option in row.options}
        content = {
            "training": training,
            "data": self.identity,
            "net": [settings.parameters["backbone"], settings.width, settings.seed, settings.class_weights],
            "windows": None if name == "global" else [self.decomposition.bounds, self.decomposition.coarse],
            "recipes": {training: self.recipes[training].described() for training in needed},
            "options": {option: getattr(settings, option) for option in sorted(options)},
            "engine": settings.engine,
            "device": [self.device.type, choose_precision(settings.precision, self.device), torch.get_num_threads()],
            "versions": [torch.__version__, records.RESULTS],
        }
        content |= {"folds": settings.out_of_fold} if "fold" in training else {}  # of how many it is one
        if settings.grid == "regions" and name != "global":  # which may lie where those of a grid lie
            content |= {"regions": self.decomposition.names}
        content |= {} if self.loss is None else {"loss": checks.print_of(self.loss)}
        return records.key(content)
