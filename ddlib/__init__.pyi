# The public names, in the order in which one meets them; for `__init__.py` and for type checkers.
from . import channels, cost, data, images, report, strategies, study, training
from ._internal import checks, files
from .aggregation import DenseAggregator, accuracy, average_probability, geometric_mean, majority_vote
from .data.sets import load_dataset
from .decomposition import Decomposition, parse_grid
from .images import ImageSet, Split, image_set
from .local import LocalCNNs
from .model import CNNDNN
from .networks import backbones
from .networks.backbones import count_parameters
from .parallel import ranks
from .parallel.executors import process_pool, train_local
from .parallel.ranks import train_coherent
from .report.tables import accuracy_table, epochs_to_reach, interval
from .strategies import STRATEGIES, Strategy, Trainings
from .study.experiment import Experiment, records_of
from .study.parameters import agrees, parameters, points
from .study.records import Record, gather
from .training import RECIPES, Diverged, Recipe, fit, predict, train_aggregator
