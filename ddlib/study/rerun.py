"""A referee's question: does a recorded point come out again?"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..networks.backbones import BACKBONES
from .experiment import Experiment
from .parameters import here_or_below, project_folder
from .records import Record, load_all

if TYPE_CHECKING:
    import pandas as pd


def again(folder: str | Path, points: int = 1, seed: int = 0) -> Iterator["pd.DataFrame"]:
    """Train some records of a folder anew, in the recorded precision and threads, and print new accuracies beside.

    A strategy agrees where new and recorded accuracy differ by no more than the seeds of the point do, or than two
    standard errors of an accuracy on so many test images, whichever is more.  `local` counts by its mean.

    Returns:
        A table a point, a row a strategy: recorded, new, allowed (percent, and points), agrees.

    Raises:
        FileNotFoundError: the folder is neither in the current one nor below the project's root.
        ValueError: there are no records, or fewer than asked for; or one of images or a backbone of one's own.
    """
    import pandas as pd

    place, threads = here_or_below(folder), torch.get_num_threads()
    if not place.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}, neither here nor below {project_folder()}.")
    records = load_all(place)
    if not 1 <= points <= len(records):
        raise ValueError(f"points must be from 1 to the {len(records)} records in {folder}, got {points}.")
    chosen = random.Random(seed).sample(records, points)
    for record, experiment in [(record, _experiment(record)) for record in chosen]:  # all, before one is trained
        same = [other for other in records if other.settings == record.settings]
        of_seeds = pd.DataFrame([other.frame().groupby("strategy")["test_accuracy"].mean() for other in same])
        made = record.provenance
        torch.set_num_threads(made["threads"])
        try:
            found = experiment.run()
        finally:
            torch.set_num_threads(threads)
        means = [frame.groupby("strategy", sort=False)["test_accuracy"].mean() for frame in (record.frame(), found)]
        table = 100 * pd.DataFrame(dict(zip(("recorded", "new"), means, strict=True)))
        share, images = means[0], len(record.arrays["labels"])
        noise = 200 * (share * (1 - share) / images).clip(lower=1 / images**2).pow(0.5)
        table["allowed"] = (100 * (of_seeds.max() - of_seeds.min())).reindex(table.index).clip(lower=noise)
        table["agrees"] = (table["new"] - table["recorded"]).abs() <= table["allowed"]
        print(f"{record.name}, recorded on {made['device']}, {made['threads']} threads, {made['precision']}:")
        print(table.round(2).to_string())
        yield table


def _experiment(record: Record) -> Experiment:
    """What was recorded, in its precision: "auto" may be another one here."""
    given = record.parameters
    if "images" in given or given["backbone"] not in BACKBONES:
        own = f"image set {given['dataset']!r}" if "images" in given else f"backbone {given['backbone']!r}"
        raise ValueError(f"{record.name} cannot be trained anew: its {own} cannot be loaded by name.")
    return Experiment(**given | {"precision": record.provenance["precision"]}, strategies=record.strategies)
