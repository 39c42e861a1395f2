"""ddlib: training CNNs by domain decomposition.

    image set → windows → local CNNs → probabilities (B, N, K) → aggregation → class

Public names load their module on first use, so that `import ddlib` adds little to `import torch`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "decomposition": ("Decomposition", "parse_grid"),
    "backbones": ("count_parameters",),
    "images": ("ImageSet", "Split", "image_set"),
    "data.sets": ("load_dataset",),
    "local": ("LocalCNNs",),
    "aggregation": ("DenseAggregator", "average_probability", "majority_vote"),
    "channels": (),
    "model": ("CNNDNN",),
    "training": ("RECIPES", "Recipe", "accuracy", "fit", "predict", "train_aggregator"),
    "engines": ("process_pool", "train_local"),
    "ranks": ("train_coherent",),
    "report.evaluation": ("accuracy_table", "confusion", "epochs_to_reach", "interval", "paired_test", "verdict"),
    "study.records": ("gather", "Record"),
    "study.configuration": ("STRATEGIES",),
    "study.experiment": ("Experiment",),
    "study.parameters": ("agrees", "points"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

_SHOWN = ("backbones", "channels", "checks", "files", "images", "ranks", "training", "data", "study", "report", "cost")

__all__ = sorted([*_MODULE, *_SHOWN])


def __getattr__(name: str) -> Any:
    if name in _SHOWN:
        return import_module(f".{name}", __name__)
    if name in _MODULE:
        value = globals()[name] = getattr(import_module(f".{_MODULE[name]}", __name__), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]


if TYPE_CHECKING:
    from . import backbones as backbones
    from .aggregation import DenseAggregator, average_probability, majority_vote
    from .backbones import count_parameters
    from .data.sets import load_dataset
    from .decomposition import Decomposition, parse_grid
    from .engines import process_pool, train_local
    from .images import ImageSet, Split, image_set
    from .local import LocalCNNs
    from .model import CNNDNN
    from .ranks import train_coherent
    from .report.evaluation import accuracy_table, confusion, epochs_to_reach, interval, paired_test, verdict
    from .study.configuration import STRATEGIES
    from .study.experiment import Experiment
    from .study.parameters import agrees, points
    from .study.records import Record, gather
    from .training import RECIPES, Recipe, accuracy, fit, predict, train_aggregator
