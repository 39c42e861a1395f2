"""One point of a table: a configuration is trained, evaluated, and kept as a record."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import channels, files
from ..aggregation import importance
from ..backbones import count_parameters
from ..data.sets import DATASETS
from ..devices import choose_precision
from ..training import accuracy, predict
from . import records
from .configuration import CHANNELS, SEVERAL, STRATEGIES, Configuration
from .stages import Stages, seconds

if TYPE_CHECKING:
    import pandas as pd


class Experiment(Configuration):
    __doc__ = Configuration.__doc__

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
        record.provenance |= {
            "seconds": round(time.perf_counter() - clock, 3),
            "data": self.source,
            "images": data.digest,
            "image_shape": list(data.image_shape),
        }
        if folder is not None:
            record.save(folder)
        return record.only(self.strategies)


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

    point, rows = stages.point, []
    shared = {name: getattr(point, name) for name in ("dataset", "backbone", "width", "grid", "overlap")}
    for strategy in point.strategies:
        reached = {
            half: np.atleast_1d(accuracy(stages.probabilities(strategy, half), getattr(stages.data, half).labels))
            for half in ("train", "test")
        }
        history = pd.concat([frame.assign(stage=stage) for stage, frame in stages.histories.items()])
        names = stages.model(strategy).decomposition.names if strategy in SEVERAL else ("",)
        rows += [
            {
                **shared,
                "strategy": strategy,
                "subdomain": name,
                "seed": point.seed,
                "epochs": point.epochs,
                "train_accuracy": float(reached["train"][i]),
                "test_accuracy": float(reached["test"][i]),
                "parameters": _weights(stages, strategy) // len(names),
                "seconds": round(seconds(history, strategy), 3),
            }
            for i, name in enumerate(names)
        ]
    return rows


def _weights(stages: Stages, strategy: str) -> int:
    """How many weights a strategy has in all its networks."""
    if strategy == "composed":
        return count_parameters(stages.model("composed"))
    sizes = [stages.sizes[stage] for stage in STRATEGIES[strategy]]
    return sizes[-1] if strategy in ("transfer", "channels") else sum(sizes)  # the last contains the others


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
