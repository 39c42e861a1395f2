"""What the notebooks share: their parameters become points of a table, and their tables are held to a reference."""

import ast
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._internal import checks, files
from ..data.sets import DATASETS
from ..decomposition import Decomposition
from ..images import ImageSet
from ..strategies import STRATEGIES, Strategy
from .experiment import Experiment
from .records import Record, gather, key
from .settings import number

if TYPE_CHECKING:
    import pandas as pd

# parameters that have several values, each of them a point → what they are called in `Experiment`
LISTS = {"grids": "grid", "overlaps": "overlap", "parts": "channel_parts", "lengths": "epochs", "seeds": "seed"}
LISTS |= {"local_widths": "local_width", "coarse_windows": "coarse"}
# "grids" and "grid": a notebook has one of them, and takes both
SPELLINGS = {many: one for many, one in LISTS.items() if many == f"{one}s"}
SPELLINGS |= {one: many for many, one in SPELLINGS.items()}
INJECTED = "# Parameters\n"  # a cell of papermill's begins so
ASSIGNED = re.compile(r"^(\w+)(?::[^=\n]+)? = ", re.M)  # `name = value` or `name: type = value`


class ParameterError(ValueError):
    """A notebook parameter that is unknown or out of range; Jupyter shows the sentence, not the call stack."""

    def _render_traceback_(self) -> list[str]:
        return [f"ParameterError: {self}"]


def points(strategies: str, needs: str = "", single: bool = False, **given: Any) -> list[Experiment]:
    """The experiments that a notebook's parameters ask for: the product of its `LISTS`.

    Args:
        strategies: a list of names, e.g. "global average vote".
        needs: strategies that the notebook cannot do without, written likewise; of "average|vote" one is enough.
        single: the notebook is about one point, so a list of several values is refused.
        given: the notebook's own parameters by name, those of `Experiment`; those of `LISTS` are single values or
            lists, as YAML or Python has them, or as text, e.g. grids="2x2 4x4"; "grid", "overlap", "seed" and
            "local_width" mean the same.  A grid can have an overlap of its own: "2x2+4".

    Raises:
        ParameterError: a value that `Experiment` refuses, a needed strategy that is not there, a parameter under two
            names, or one that papermill injected and the notebook does not have (papermill itself only warns).
    """
    given = _as_injected(given)
    with checking("strategies", *given):
        asked = tuple(values("strategies", strategies))
        if isinstance(grid := given.get("grid"), (list, tuple)) and all(isinstance(part, int) for part in grid):
            given["grid"] = [grid]  # (2, 2) is one grid
        given = spelled(given, LISTS)
        lists = {name: values(many, given.pop(many)) for many, name in LISTS.items() if many in given}
        for name, several in lists.items():
            if single and len(several) > 1:
                raise ValueError(f"this notebook takes one {name}, got {several}.")
        found = []
        for chosen in itertools.product(*lists.values()):  # one value of each list: a point
            point = _own_overlap(dict(zip(lists, chosen, strict=True)))
            found.append(Experiment(strategies=asked, **given | point))
        lacking = [some.replace("|", " or ") for some in needs.split() if not set(some.split("|")) & set(asked)]
        if lacking:
            raise ValueError(f"this notebook needs {' and '.join(lacking)} among its strategies, got {strategies!r}.")
        if found[0].train_size is not None and found[0].dataset != "digits":  # the quick profile's may not be meant
            print(f"Training on {found[0].train_size} images only (train_size; None for all).")
        return [_small_batch(point) for point in dict.fromkeys(found)]


def parameters(names: Mapping[str, Any]) -> dict[str, Any]:
    """A notebook's parameters that `points` takes, from its `globals()`: what the cell that assigns `output` assigns.

    Outside IPython, where no cell can be asked, all names that are of `Experiment` or `LISTS`.
    """
    cells = [found for cell in _executed_cells() if "output" in (found := ASSIGNED.findall(cell))]
    own = set().union(*cells) if cells else set(names)
    return {name: names[name] for name in names if name in own & {*Experiment.__dataclass_fields__, *LISTS}}


def spelled(given: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """`given` by the names that are `known`, where the other of two `SPELLINGS` was used.

    Raises:
        ValueError: one of `LISTS` was given under both its names.
    """
    if both := [f"{many} and {one}" for many, one in LISTS.items() if {many, one} <= {*given}]:
        raise ValueError(f"{both[0]} are the same parameter: give one of them.")
    other = {name for name in given if name not in known and SPELLINGS.get(name) in known}
    return {SPELLINGS[name] if name in other else name: value for name, value in given.items()}


def at_hand(point: Experiment) -> ImageSet | None:
    """The images of a point, or None where they are not on this machine: records need none."""
    try:
        return point.data()
    except FileNotFoundError:
        return None


def windows_of(point: Experiment, records: list[Record]) -> Decomposition:
    """The windows of a point without its images: their shape is in records of the same images, but early ones."""
    known = (record.provenance.get("image_shape") for record in records)
    shape = next((shape for shape in known if shape), None) or point.data().image_shape
    if point.grid != "regions":
        return point.decomposition_of(shape)
    known = point.dataset if isinstance(point.dataset, ImageSet) else DATASETS[point.dataset]
    return Decomposition.regions(shape, known.regions, bool(point.coarse))


@contextmanager
def checking(*known: str) -> Iterator[None]:
    """Around the checks of a notebook, whose parameters are `known`: a refusal is told in a sentence.

    Raises:
        ParameterError: for a ValueError or a missing file inside, or a parameter that papermill injected and the
            notebook does not have.
    """
    try:
        cells = _executed_cells()
        own = [name for cell in cells if not cell.startswith(INJECTED) for name in ASSIGNED.findall(cell)]
        injected = [name for name in ASSIGNED.findall(_injected_cell()) if not name.startswith("PAPERMILL_")]
        own += [SPELLINGS[name] for name in own if name in SPELLINGS and name not in injected]
        for name in injected:  # but for those of --inject-paths
            checks.one_of("notebook parameter", name, sorted({*known, *own}))
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ParameterError(str(error)) from None


def values(name: str, given: Any) -> list[Any]:
    """A list as papermill hands it over, [0, 4], as text, "0 4" or "0, 4", or a single value."""
    if isinstance(given, str):
        given = given.replace(",", " ").split()
    given = given.tolist() if isinstance(given, (np.ndarray, np.generic)) else given
    found = list(given) if isinstance(given, (list, tuple, range)) else [given]
    if not found:
        raise ValueError(f"{name} must name at least one value, got none.")
    return found


def whole_numbers(name: str, given: Any) -> list[int]:
    """The notebook parameter `name`: "1 2 4" or [1, 2, 4] → [1, 2, 4]; ParameterError for others than numbers ≥ 1."""
    with checking(name):
        return [checks.integer(name, number(value), 1) for value in values(name, given)]


def _executed_cells() -> list[str]:
    """Sources of the cells that this kernel has run, oldest first; none outside IPython."""
    from IPython import get_ipython

    shell = get_ipython()
    return [] if shell is None else shell.user_ns["In"]


def _injected_cell() -> str:
    """The source of the last cell that papermill injected; empty where there is none."""
    return next((cell for cell in reversed(_executed_cells()) if cell.startswith(INJECTED)), "")


def _as_injected(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, where what papermill injected under the other of two `SPELLINGS` takes the place of a notebook's own."""
    cell = _injected_cell()
    injected, found = ASSIGNED.findall(cell), dict(given)
    for name in given:
        if (other := SPELLINGS.get(name)) in injected and name not in injected:
            lines = [line for line in ast.parse(cell).body if ast.unparse(line).startswith(f"{other} = ")]
            del found[name]
            found[other] = ast.literal_eval(lines[-1].value)
    return found


def _small_batch(point: Experiment) -> Experiment:
    """On a folder of few images a batch has a quarter of them, and a line says so."""
    entry = DATASETS.get(point.dataset) if isinstance(point.dataset, str) else None
    if entry is None or "path" not in entry.options:
        return point
    images = len(point.data().train)
    if images >= point.batch_size or images < 8:
        return point
    print(f"batch_size {point.batch_size} → {images // 4}: there are {images} training images")
    return replace(point, batch_size=images // 4)


def _own_overlap(point: dict[str, Any]) -> dict[str, Any]:
    """The grid "2x2+4" is 2x2 with overlap 4."""
    grid, plus, overlap = str(point.get("grid", "")).partition("+")
    return {**point, "grid": grid, "overlap": overlap} if plus else point


# ── folders and files ──


def project_folder() -> Path:
    """The companion's root: the folder above this one that has notebooks/, or above the caller's.

    So a relative folder means the same whether papermill, nbval or JupyterLab runs a notebook.
    """
    above = [*Path(__file__).resolve().parents, Path.cwd(), *Path.cwd().parents]
    roots = (folder for folder in above if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file())
    return next(roots, Path.cwd())


def notebooks_folder() -> Path:
    """The project's notebooks/; FileNotFoundError where there are none."""
    folder, hint = project_folder() / "notebooks", "pip does not install it; call this in a copy of the project"
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: {hint}.")
    return folder


def resolve(path: str | Path) -> Path:
    """An absolute path as it is, a relative one below `project_folder()`."""
    return project_folder() / Path(path).expanduser()


def here_or_below(path: str | Path) -> Path:
    """What a command names: from the current folder where it is there, else below `project_folder()`."""
    return Path(path).absolute() if Path(path).exists() else resolve(path)


def read_yaml(path: str | Path) -> tuple[Path, Any]:
    """A plan or configuration, and where it is: from the current folder, else below the project's root.

    Raises:
        FileNotFoundError: it is in neither.
        ValueError: it is not YAML.
    """
    import yaml

    found = here_or_below(path)
    try:
        return found, yaml.safe_load(found.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{found} is not YAML: {error}") from None


def output_of(path: Path, given: Any) -> Path:
    """The output folder that the YAML file `path` gives; ValueError where that is no name of one."""
    if not isinstance(given, str) or given in ("", "None"):  # YAML's None is null; "None" is a text
        raise ValueError(f"{path}: output must name a folder, got {given!r}.")
    return resolve(given)


def read_point(path: str | Path) -> tuple[Experiment, Path]:
    """The configuration of a coherent training: fields of an `Experiment`, one strategy, and the output folder.

    Raises:
        ValueError: an unknown key (the nearest is named), no output, or a value that is not allowed.
    """
    path, given = read_yaml(path)
    if not isinstance(given, dict) or not given.get("output"):
        raise ValueError(f"{path}: a mapping with output, strategy and fields of an experiment is needed.")
    fields = {"output", "strategy", *Experiment.__dataclass_fields__} - {"strategies", "local_losses"}
    for name in given:
        checks.one_of(f"key of {path.name}", name, sorted(fields))  # local losses: in one process
    output, strategy = output_of(path, given.pop("output")), given.pop("strategy", "coherent")
    return Experiment(**given, strategies=(checks.one_of("strategy", strategy, ("coherent", "transfer")),)), output


def output_folder(path: str | None) -> Path | None:
    """The folder for records and figures, created, tried and printed; relative ones lie below the project's root.

    None, also as the text that `papermill -r` makes of it, is no folder; an empty text is a ParameterError.
    """
    if path in (None, "None"):
        return None
    if path == "":
        raise ParameterError("output must name a folder, or be None, got ''.")
    folder = files.writable_folder(resolve(path))
    print(f"output: {folder}")
    return folder


def tables_folder(folder: Path | None, name: str, frame: "pd.DataFrame") -> Path | None:
    """Where to write the table `name` and its figures: `folder`, unless a table is there that has other records.

    That one stays, and the new one goes below `folder`/tables, named by its own records; a table that has all the
    records of the one that is there replaces it.
    """
    import pandas as pd

    own, path = set(frame["record"]), folder and folder / f"{name}.csv"
    if path and path.exists() and not set(pd.read_csv(path)["record"]) <= own:
        return files.writable_folder(folder / "tables" / f"{name}-{key(sorted(own))[:8]}")
    return folder


def agrees(frame: "pd.DataFrame", reference: str | Path, tolerance: float) -> bool:
    """Hold a trained table against a committed one, and print a fixed sentence; False where that lacks a point.

    Figures of training differ between processors; they must not differ by more than `tolerance` (as a share of
    test images).  Networks of a part count by their mean, and may be twice as far off: after few epochs they are
    far from done, in fp32 here and bf16 there.  The coherent model is left out: few epochs may or may not
    carry it off chance level.

    Args:
        reference: a table, or a folder of records.

    Raises:
        AssertionError: a test accuracy lies further off; the message lists the rows.
        FileNotFoundError: the reference is not there.
        ValueError: it is no table of records.
    """
    import pandas as pd

    path = resolve(reference)
    if not path.exists():
        raise FileNotFoundError(f"there is no table and no folder of records {path}.")
    known = pd.read_csv(path) if path.is_file() else gather(path)
    if lacking := [name for name in ("record", "strategy", "test_accuracy") if name not in known]:
        raise ValueError(f"{reference} is no table of records: it has no column {lacking[0]!r}.")
    if not set(frame["record"]) <= set(known["record"]):
        print(f"No reference for these parameters in {reference}.")
        return False
    tables = {"found": frame, "reference": known}
    means = {name: table.groupby(["strategy", "record"])["test_accuracy"].mean() for name, table in tables.items()}
    both = pd.DataFrame(means).loc[means["found"].index].drop("coherent", errors="ignore")
    if new := [name for name, known in both["reference"].groupby("strategy", sort=False) if known.isna().any()]:
        print(f"No reference for {', '.join(new)} in {reference}.")
        both = both[both["reference"].notna()]
        if both.empty:
            return False
    rows = (STRATEGIES.get(name, Strategy) for name in both.index.get_level_values("strategy"))  # or one's own
    allowed = [tolerance * (1 + row.several) for row in rows]
    far = both[~((both["found"] - both["reference"]).abs() <= allowed)]
    if not far.empty:
        raise AssertionError(f"differs from {reference}:\n{far}")
    but = " but those of the coherent model" if "coherent" in set(frame["strategy"]) else ""
    print(f"Every test accuracy{but} agrees with {reference} within {100 * tolerance:g} points.")
    return True
