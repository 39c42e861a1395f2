"""Where training runs: on executors, a task for each local CNN, and on ranks, as one coherent model."""

from . import ranks as ranks
