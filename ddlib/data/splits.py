"""Training and test files, split by patient, so that nobody is on both sides."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PATIENT = r"(.+)_R_\d+\."


def patients(place: Path, paths: Sequence[Path], pattern: str | None = None) -> list[str]:
    """For each file below `place` the patient that its name carries, else the file itself.

    `pattern` is a regular expression that finds the patient in a name, as its first group or all of it; by default
    `<patient>_R_<n>.*`.  One that is in no name is a ValueError.
    """
    found = [re.search(pattern or PATIENT, path.name) for path in paths]
    if pattern and not any(found):
        raise ValueError(f"patient={pattern!r} is in no name of a file, such as {paths[0].name!r}.")
    return [
        match[match.re.groups and 1] if match else path.relative_to(place).as_posix()
        for path, match in zip(paths, found, strict=True)
    ]


def together(whose: Sequence[str], prints: Sequence[str]) -> list[str]:
    """For each image the name of a patient: those who share an image, by its fingerprint, have the same."""
    from scipy.cluster.hierarchy import DisjointSet

    groups = DisjointSet([*whose, *prints])
    for patient, image in zip(whose, prints, strict=True):
        groups.merge(patient, image)
    return [groups[patient] for patient in whose]


def split(
    labels: Tensor, classes: Sequence[str], whose: Sequence[str], fraction: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Indices of training and test files, both sorted; the test side gets about `fraction` of each class.

    A patient is on one side with all that is theirs.  Patients come in random order, and each goes to the test side
    if that brings the shares of the classes there nearer to `fraction` (ours).  A class that is then missing on a side
    gets its first patient who is not missed on the other.

    Raises:
        ValueError: a class has too few patients to be on both sides.
    """
    names, index = np.unique(np.asarray(whose), return_inverse=True)
    shares = np.zeros((len(names), len(classes)))  # of each class, that a patient has
    np.add.at(shares, (index, labels.numpy()), 1)
    shares /= shares.sum(0)
    lacking, test = np.full(len(classes), fraction), np.zeros(len(names), dtype=bool)
    order = np.random.default_rng(seed).permutation(len(names))
    for patient in order:
        if np.square(lacking - shares[patient]).sum() < np.square(lacking).sum():
            lacking -= shares[patient]
            test[patient] = True
    for side in (True, False):
        for label in range(len(classes)):
            if shares[test == side, label].any():
                continue
            counts = (shares[test != side] > 0).sum(0)  # of patients on the other side, for each class
            can = [p for p in order if shares[p, label] and (counts[shares[p] > 0] > 1).all()]
            if not can:
                raise ValueError(
                    f"class {classes[label]!r} has too few patients, or files, to be on both sides of a split "
                    f"with a test share of {fraction}: {(shares[:, label] > 0).sum()} (equal images count once)."
                )
            test[can[0]] = side
    return torch.from_numpy(np.flatnonzero(~test[index])), torch.from_numpy(np.flatnonzero(test[index]))
