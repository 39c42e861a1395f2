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
    "datasets": ("load_dataset",),
    "local": ("LocalCNNs",),
    "aggregation": ("DenseAggregator", "average_probability", "majority_vote"),
    "channels": (),
    "model": ("CNNDNN",),
    "training": ("RECIPES", "Recipe", "accuracy", "fit", "predict", "train_aggregator"),
    "engines": ("process_pool", "train_local"),
    "distributed": ("train_coherent",),
    "evaluation": ("accuracy_table", "confusion", "epochs_to_reach", "interval", "paired_test", "verdict"),
    "records": ("gather", "Record"),
    "experiment": ("STRATEGIES", "Experiment"),
    "notebook": ("agrees", "points"),
    "plots": (),
    "curves": (),
    "scaling": (),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted([*_MODULE, *_HOME])


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return import_module(f".{name}", __name__)
    if name in _MODULE:
        value = globals()[name] = getattr(import_module(f".{_MODULE[name]}", __name__), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]


if TYPE_CHECKING:
    from . import backbones as backbones
    from . import plots as plots
    from .aggregation import DenseAggregator, average_probability, majority_vote
    from .backbones import count_parameters
    from .datasets import load_dataset
    from .decomposition import Decomposition, parse_grid
    from .distributed import train_coherent
    from .engines import process_pool, train_local
    from .evaluation import accuracy_table, confusion, epochs_to_reach, interval, paired_test, verdict
    from .experiment import STRATEGIES, Experiment
    from .images import ImageSet, Split, image_set
    from .local import LocalCNNs
    from .model import CNNDNN
    from .notebook import agrees, points
    from .records import Record, gather
    from .training import RECIPES, Recipe, accuracy, fit, predict, train_aggregator
