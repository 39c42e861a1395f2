# The public names, for `__init__.py` and for type checkers.
from . import backbones, channels, checks, cost, data, files, images, ranks, report, study, training
from .aggregation import DenseAggregator, average_probability, geometric_mean, majority_vote
from .backbones import count_parameters
from .data.sets import load_dataset
from .decomposition import Decomposition, parse_grid
from .engines import process_pool, train_local
from .images import ImageSet, Split, image_set
from .local import LocalCNNs
from .model import CNNDNN
from .ranks import train_coherent
from .report.tables import accuracy_table, epochs_to_reach, interval
from .study.experiment import STRATEGIES, Experiment
from .study.parameters import agrees, points
from .study.records import Record, gather
from .training import RECIPES, Recipe, accuracy, fit, predict, train_aggregator
