"""What a run leaves: figures with their provenance, written atomically, gathered to a tidy frame.

A record is NAME.json (parameters, a row a strategy, provenance) and NAME.npz (labels and predicted classes of the
test images, history by epoch).  Tables and figures are drawn from records alone.
"""

import io
import json
import os
import platform
import re
import subprocess
import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import __version__
from .._internal import files
from ..training import RECIPES

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
USUAL = RECIPES["dense network"].epochs
ROW = {  # column → type; `gather` gives these, in this order, and then `ABOUT`
    "dataset": str,
    "backbone": str,
    "width": int,
    "grid": str,
    "overlap": int,
    "strategy": str,
    "subdomain": str,
    "seed": int,
    "epochs": int,
    "train_accuracy": float,
    "test_accuracy": float,
    "parameters": int,
    "seconds": float,  # of all the trainings that the strategy needs; for `local`, of all N together
}
ABOUT = ("augment", "variant", "settings", "record", "outdated", "computed", "commit")
# Parameters of an experiment that are mostly not given; those that are tell the rows of a table apart.
VARIANT = ("options", "train_size", "channel_parts", "samples", "out_of_fold", "local_losses", "log_probabilities")
VARIANT += ("dense_hidden", "dense_start", "local_width", "coarse", "ties", "class_weights", "validation")
VARIANT += ("optimizer", "schedule", "weight_decay")
# Raised when an accuracy would come out differently, by more than rounding: records of a lower number are outdated, and
# one without a number has 1.  `tests/test_golden.py` fails where losses move and this was not raised.
RESULTS = 1


@dataclass
class Record:
    """One point of a table: one data set, backbone, decomposition and seed, with its strategies.

    Attributes:
        parameters: of the `Experiment`, without its strategies; they identify the point.
        rows: a row a strategy (`local`: one for each subdomain; `sub-networks` likewise), columns `ROW`.
        arrays: "labels" (n,), "predicted/STRATEGY" (n,), "predicted/local" (N, n), "history/STAGE/COLUMN" (epochs,);
            for two classes "score/STRATEGY", the second one's probability; for the dense network "importance" (N,);
            for sub-networks on whole images "bounds/FIGURE", see `channels.bounds`.
        provenance: git commit, `RESULTS`, versions, device, threads, precision, time.
        path: its file, where it was loaded.
    """

    parameters: dict[str, Any]
    rows: list[dict[str, Any]]
    arrays: dict[str, np.ndarray]
    provenance: dict[str, Any] = field(default_factory=dict)
    path: Path | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        return record_name(self.parameters)

    @property
    def variant(self) -> str:
        """What of `VARIANT` is given, e.g. "channel_parts=2 samples=shares", and unusual dense epochs."""
        given = {name: self.parameters[name] for name in VARIANT if name in self.parameters}
        dense = self.parameters.get("dense_epochs", USUAL)
        given |= {} if dense == USUAL else {"dense_epochs": dense}
        return " ".join(f"{name}={value}" for name, value in given.items())

    @property
    def settings(self) -> str:
        """A hash of all parameters but the seed: equal for the seeds of one point."""
        return key({name: value for name, value in self.parameters.items() if name != "seed"})[:8]

    @property
    def strategies(self) -> list[str]:
        return list(dict.fromkeys(row["strategy"] for row in self.rows))

    @property
    def outdated(self) -> bool:
        """It was made before an accuracy would have come out differently (`RESULTS`)."""
        return self.provenance.get("results", 1) != RESULTS

    def only(self, strategies: Iterable[str]) -> "Record":
        """The same record with some of its strategies, in that order."""
        return replace(self, rows=[row for strategy in strategies for row in self.rows if row["strategy"] == strategy])

    def frame(self) -> "pd.DataFrame":
        """The rows, tidy."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=list(ROW))

    def history(self) -> "pd.DataFrame":
        """Tidy: stage, epoch, loss, train_accuracy, seconds, and test_accuracy where it was followed."""
        import pandas as pd

        stages: dict[str, dict[str, np.ndarray]] = {}
        for name, values in self.arrays.items():
            if name.startswith("history/"):
                _, stage, column = name.split("/")
                stages.setdefault(stage, {})[column] = values
        frames = [pd.DataFrame(columns).assign(stage=stage) for stage, columns in stages.items()]
        return pd.concat(frames) if frames else pd.DataFrame(columns=["stage", "epoch", "seconds"])

    def predicted(self, strategy: str) -> np.ndarray:
        """Predicted class of each test image, (n,); for "local" and "sub-networks", (N, n)."""
        return self.arrays[f"predicted/{strategy}"]

    def save(self, folder: str | Path) -> Path:
        """Write NAME.npz, then NAME.json, each atomically: a record whose JSON is there is whole."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **self.arrays)
        data = buffer.getvalue()
        files.write_atomically(Path(folder) / f"{self.name}.npz", data)
        content = {"schema": SCHEMA, "arrays_sha256": files.checksum(data)}
        content |= {name: getattr(self, name) for name in ("parameters", "rows", "provenance")}
        return files.write_atomically(Path(folder) / f"{self.name}.json", json.dumps(content, indent=1) + "\n")


def load(path: str | Path) -> Record:
    """Read NAME.json and NAME.npz, checked against the schema and the checksum.

    Raises:
        files.DamagedFile: something is missing, of the wrong type, or not what was written.
        OSError: it could not be read, for want of rights or file descriptors, say.
    """
    path = Path(path).expanduser()
    try:
        content = json.loads(path.read_text())
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}, expected {SCHEMA}")
        for row in content["rows"]:
            if row.keys() != ROW.keys() or not all(isinstance(row[name], kind) for name, kind in ROW.items()):
                raise ValueError(f"the row {row} does not fit the schema")
        data = path.with_suffix(".npz").read_bytes()
        if (found := files.checksum(data)) != content["arrays_sha256"]:
            raise ValueError(f"{path.stem}.npz should have SHA-256 {content['arrays_sha256']}, it has {found}")
        with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
            arrays = dict(loaded)
        if unknown := [name for name, array in arrays.items() if name.startswith("score/") and np.isnan(array).any()]:
            raise ValueError(f"{unknown[0]} is NaN, its training has diverged")
        return Record(content["parameters"], content["rows"], arrays, content["provenance"], path)
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError) as error:
        raise files.DamagedFile(f"{path} is damaged: {type(error).__name__}: {error}.") from error


def find(folder: str | Path, name: str) -> Record | None:
    """The record of that name, where there is a whole one; a damaged one is set aside, with a warning."""
    path = Path(folder).expanduser() / f"{name}.json"
    try:
        return load(path) if path.exists() else None
    except files.DamagedFile as error:
        away = [files.set_aside(part).name for part in (path, path.with_suffix(".npz")) if part.exists()]
        warnings.warn(f"{error} It was set aside as {' and '.join(away)}.", stacklevel=3)
        return None


def load_all(folder: str | Path) -> list[Record]:
    """All records below a folder, by name, each `once`; JupyterLab's hidden copies are none.

    Raises:
        FileNotFoundError: the folder is not there.
        ValueError, files.DamagedFile: as `once` and `load`.
    """
    folder, found = Path(folder).expanduser(), []
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}.")
    for path in sorted(folder.rglob("*.json")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.with_suffix(".npz").exists() or b'"schema"' in path.read_bytes():
            found.append(load(path))
        else:
            warnings.warn(f"{path} is no record, and is left out.", stacklevel=3)
    return once(found)


def once(found: Iterable[Record]) -> list[Record]:
    """Each point once; of two records that agree in all that both have, the second adds its other strategies.

    Raises:
        ValueError: two of a point that differ; both files are named.
    """
    first: dict[str, Record] = {}
    for record in found:
        known = first.get(record.name)
        first[record.name] = record if known is None else _together(known, record)
    return list(first.values())


def _together(known: Record, other: Record) -> Record:
    shared = {*known.strategies} & {*other.strategies}
    figures = [
        [{**row, "seconds": None} for row in sorted(record.only(shared).rows, key=str)] for record in (known, other)
    ]
    if not shared or figures[0] != figures[1]:
        both = f"{known.path} and {other.path}"
        raise ValueError(f"two different records are called {known.name}: {both}; move one of them away.")
    more = [row for row in other.rows if row["strategy"] not in shared]
    return replace(known, rows=[*known.rows, *more], arrays={**other.arrays, **known.arrays}) if more else known


def gather(source: str | Path | Iterable[Record]) -> "pd.DataFrame":
    """Records, or all below a folder, as one tidy frame: a row a strategy, columns `ROW` and `ABOUT`.

    Raises:
        FileNotFoundError: the folder is not there; one without records has no rows.
    """
    import pandas as pd

    rows = []
    for record in load_all(source) if isinstance(source, (str, Path)) else source:
        made = record.provenance
        about = {
            "augment": "yes" if record.parameters.get("augment", True) else "no",
            "variant": record.variant,
            "settings": record.settings,
            "record": record.name,
            "outdated": record.outdated,
            "computed": f"{made.get('device')}, {made.get('threads')} threads, {made.get('precision')}",
            "commit": made["commit"][:10],
        }
        rows += [row | about for row in record.rows]
    return pd.DataFrame(rows, columns=[*ROW, *ABOUT])


def record_name(parameters: dict[str, Any]) -> str:
    """Readable, and different for different parameters: `cifar10-vgg9-2x2-o4-s0-1a2b3c4d`."""
    shown = "{dataset}-{backbone}-{grid}-o{overlap}-s{seed}".format(**parameters)
    return f"{shown}-{key(parameters)[:8]}"


def key(content: Any) -> str:
    """A hash of anything that JSON can write."""
    return files.checksum(json.dumps(content, sort_keys=True).encode())


def provenance(device: str, precision: str, started: float) -> dict[str, Any]:
    """Where and how a record was made."""
    commit, _, changed = _described().partition("-")
    versions = {name: version(name) for name in ("torch", "torchvision", "numpy", "pandas")}
    return {
        "commit": commit or "unknown",
        "dirty": bool(changed),
        "results": RESULTS,
        "versions": {"ddlib": __version__, **versions},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
    }


def _described() -> str:
    """The commit of this code, with "-dirty" where files were changed since; nothing outside its own repository."""
    project = Path(__file__).resolve().parents[2]
    git = ["git", f"--git-dir={project / '.git'}", f"--work-tree={project}"]  # of no folder further up: another's
    options = {"cwd": project, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "timeout": 10}
    with suppress(OSError, subprocess.TimeoutExpired):
        if subprocess.run([*git, "ls-files", "ddlib"], **options).stdout:
            command = [*git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
            return subprocess.run(command, **options).stdout.strip()
    return ""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.M) if info.exists() else None
    return named[1].strip() if named else platform.processor() or platform.machine()
