"""One point of a table: trained, evaluated, and kept as a record."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from .. import channels
from .._internal import files
from .._internal.devices import choose_precision
from .._internal.progress import whole_bar
from ..aggregation import accuracy
from ..data.sets import DATASETS, check_options, present
from ..images import ImageSet
from ..networks.backbones import count_parameters
from ..strategies import HEADS, STRATEGIES
from ..training import predict
from . import records
from .importance import importance
from .settings import Settings, yes
from .trainings import KeptTrainings, seconds

if TYPE_CHECKING:
    import pandas as pd


class Experiment(Settings):
    __doc__ = Settings.__doc__

    def run(self, folder: str | Path | None = None, **options: Any) -> "pd.DataFrame":
        """Train and evaluate: a tidy frame, a row a strategy (`local`: one for each subdomain); see `record`."""
        return self.record(folder, **options).frame()

    def model(self, strategy: str, folder: str | Path | None = None, *, progress: bool = True) -> nn.Module:
        """The trained network of a strategy, in eval mode: from the checkpoints in `folder`, as far as they are there.

        Of one that only combines local probabilities, the local CNNs.
        """
        progress = yes("progress", progress)
        folder = None if folder is None else files.writable_folder(folder)
        return (
            KeptTrainings(replace(self, strategies=(strategy,)), self.data(), folder, progress).model(strategy).eval()
        )

    def record(self, folder: str | Path | None = None, *, reuse: bool = True, progress: bool = True) -> records.Record:
        """Train and evaluate.

        Args:
            folder: where the record and, below checkpoints/, the trained models are kept; None keeps nothing.
            reuse: take a record of the very same parameters from the folder instead of training, go on from a
                checkpoint, and share trained models with other points.  A record that lacks a strategy is made
                anew with its own and the new ones; one of other parameters has another name and stays.

        Raises:
            ValueError: a decomposition or recipe that does not fit the images, images that changed since they were
                recorded (where they are at hand and no published checksum holds them), or a switch that is neither
                True nor False, also as text; before any training.
            training.Diverged: a training has diverged; nothing is recorded.
            OSError: the folder cannot be written; before any training.
        """
        return self._record(folder, yes("reuse", reuse), yes("progress", progress), {})

    def _record(
        self, folder: str | Path | None, reuse: bool, progress: bool, images: dict[tuple, dict[str, Any]]
    ) -> records.Record:
        """`images` has what `_check_same_images` has read: once for all points of a call."""
        asked, known = self, None
        entry = None if isinstance(self.dataset, ImageSet) else DATASETS[self.dataset]
        if folder is not None:
            folder = files.writable_folder(folder)
            known = records.find(folder, self.name)
        if known is not None:
            if reuse:
                self._check_same_images(known, images)
            if reuse and set(self.strategies) <= set(known.strategies):
                return known.only(self.strategies)
            asked = replace(self, strategies=[s for s in STRATEGIES if s in (*self.strategies, *known.strategies)])
        data = self.data()
        about = _about(data)
        started, clock = time.time(), time.perf_counter()
        run = KeptTrainings(asked, data, folder if reuse else None, progress)
        made = records.provenance(run.device.type, choose_precision(self.precision, run.device), started)
        record = records.Record(self.parameters, _rows(run), _arrays(run), made)
        options = entry.options | check_options(self.dataset, self.options or "") if entry else {}
        record.provenance |= {
            "seconds": round(time.perf_counter() - clock, 3),
            "data": {"name": data.name, **options},
            **about,
        }
        if folder is not None:
            record.save(folder)
        return record.only(self.strategies)

    def _check_same_images(self, record: records.Record, images: dict[tuple, dict[str, Any]]) -> None:
        """Behind a name that no published checksum holds, images may have changed; records do not need them, though.

        `images` has the images of a point, as `_about` tells them, where they were read before.
        """
        if isinstance(self.dataset, ImageSet) or "images" not in record.provenance:
            return
        entry, drawn = DATASETS[self.dataset], (self.train_size, self.validation)
        if entry.published or (entry.places and present(self.dataset) is None):  # do not download them for this
            return
        point = (self.dataset, self.options, *drawn, self.seed if any(drawn) else None)
        if point not in images:
            try:
                images[point] = _about(self.data())
            except (FileNotFoundError, ImportError):  # they cannot be read on this machine
                images[point] = {}
        was, matters = record.provenance, {"flip_axes": self.augment, "regions": self.grid == "regions"}
        changed = [what for what, now in images[point].items() if matters.get(what, True) and was.get(what, now) != now]
        if not changed:
            return
        values = f"{changed[0]} {was[changed[0]]!s:.32}, now {images[point][changed[0]]!s:.32}"
        told = f"the images of {self.dataset} have changed since {record.name} was recorded ({values})"
        if entry.exact:
            raise ValueError(f"{told}: give another output folder, or move the record away.")
        warnings.warn(f"{told}, or were made with other rounding on another kind of processor.", stacklevel=4)
        images[point] = {}  # told once


def records_of(
    points: Sequence[Experiment], folder: str | Path | None = None, *, reuse: bool = True, progress: bool = True
) -> list[records.Record]:
    """`Experiment.record` of several points, under one bar that tells the time left of all of them.

    Its share of the bar is a training's number of epochs.  A line says how many points came from records; the
    environment variable DDLIB_PROGRESS=0 switches bars off, not that line.
    """
    reuse, progress = yes("reuse", reuse), yes("progress", progress)
    there = [_on_record(point, folder) if reuse else False for point in points]
    parts = [{} if known else _epochs(point) for point, known in zip(points, there, strict=True)]
    found: list[records.Record] = []
    images: dict[tuple, dict[str, Any]] = {}
    with whole_bar(parts, progress) as bar:
        for point in points:
            bar.begin()
            found.append(point._record(folder, reuse, progress, images))
    if any(there):
        print(f"{sum(there)} of {len(points)} points came from records.")
    return found


def _on_record(point: Experiment, folder: str | Path | None) -> bool:
    known = None if folder is None else records.find(folder, point.name)
    return known is not None and {*point.strategies} <= {*known.strategies}


def _epochs(point: Experiment) -> dict[str, float]:
    """What each training that a point needs takes, in epochs; that of a dense network next to nothing."""
    needed = {name for strategy in point.strategies for name in STRATEGIES[strategy].trainings}
    return {name: 0.0 if name in HEADS else float(point.epochs) for name in needed}


def _about(data: ImageSet) -> dict[str, Any]:
    """What a record says of the images that it was made on."""
    return {
        "images": data.digest,
        "image_shape": list(data.image_shape),
        "channels": data.channels,
        "classes": list(data.classes),
        "flip_axes": list(data.train.flip_axes),
        "regions": {name: [list(side) for side in bounds] for name, bounds in (data.regions or {}).items()},
    }


def _rows(run: KeptTrainings) -> list[dict[str, Any]]:
    """The figures of a record: a row a strategy; of several networks, a row each."""
    import pandas as pd

    data, rows = run.data, []
    for strategy in run.settings.strategies:
        train = np.atleast_1d(accuracy(run.probabilities(strategy, "train"), data.train.labels))
        test = np.atleast_1d(accuracy(run.probabilities(strategy, "test"), data.test.labels))
        history = pd.concat([frame.assign(stage=stage) for stage, frame in run.histories.items()])
        network = run.model(strategy)
        names = network.decomposition.names if STRATEGIES[strategy].several else ("",)
        for name, in_training, in_test in zip(names, train.tolist(), test.tolist(), strict=True):
            row = run.settings.parameters | {
                "strategy": strategy,
                "subdomain": name,
                "train_accuracy": in_training,
                "test_accuracy": in_test,
                "parameters": count_parameters(network) // len(names),
                "seconds": round(seconds(history, strategy), 3),
            }
            rows.append({column: row[column] for column in records.ROW})
    return rows


def _arrays(run: KeptTrainings) -> dict[str, np.ndarray]:
    """What else a record keeps, see `Record`."""
    strategies, labels = run.settings.strategies, run.data.test.labels
    small = np.uint8 if run.data.num_classes <= 256 else np.int64
    arrays = {"labels": labels.numpy().astype(small)}
    for strategy in strategies:
        p = run.probabilities(strategy, "test")
        arrays[f"predicted/{strategy}"] = p.argmax(-1).numpy().T.astype(small)
        if p.shape[-1] == 2:
            arrays[f"score/{strategy}"] = p[..., 1].numpy().T.astype(np.float32)
    if "cnn-dnn" in strategies:
        p = run.probabilities("local", "test")
        arrays["importance"] = np.array(importance(run.model("cnn-dnn").head, p, labels))
    if any(STRATEGIES[strategy].of_channels for strategy in strategies) and run.samples != "windows":
        p = predict(run.model("sub-networks"), run.data.test, precision="fp32")  # bf16 would round the bounds
        arrays |= {f"bounds/{name}": np.array(value) for name, value in channels.bounds(p.log(), labels).items()}
    for training, history in run.histories.items():
        arrays |= {f"history/{training}/{column}": history[column].to_numpy() for column in history}
    return arrays
