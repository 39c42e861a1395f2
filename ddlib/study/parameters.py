"""What the notebooks share: their parameters become points of a table, and their tables are held to a reference."""

import ast
import inspect
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checks, files
from .experiment import Experiment
from .records import key

if TYPE_CHECKING:
    import pandas as pd

# "2x2 4x4" → two points
LISTS = {
    "grids": "grid",
    "overlaps": "overlap",
    "parts": "channel_parts",
    "lengths": "epochs",
    "seeds": "seed",
}


class ParameterError(ValueError):
    """A notebook parameter that is unknown or out of range; Jupyter shows the sentence, not the call stack."""

    def _render_traceback_(self) -> list[str]:
        return [f"ParameterError: {self}"]


def points(strategies: str, needs: str = "", **given: Any) -> list[Experiment]:
    """The experiments that a notebook's parameters ask for: the product of its `LISTS`.

    Args:
        strategies: names with spaces between them, e.g. "global average vote".
        needs: strategies that the notebook cannot do without, written likewise; of "average|vote" one is enough.
        given: the notebook's own parameters by name, those of `Experiment`; those of `LISTS` are lists written with
            spaces, e.g. grids="2x2 4x4".  A grid can have an overlap of its own: "2x2+4".

    Raises:
        ParameterError: a value that `Experiment` refuses, a needed strategy that is not there, or a parameter that
            papermill injected and the notebook does not have (papermill itself only warns).
    """
    try:
        names = set(given)
        lists = {one: str(given.pop(many)).split() for many, one in LISTS.items() if many in given}
        for many, one in LISTS.items():
            if one in lists and one != "grid":
                lists[one] = [_number(many, value) for value in lists[one]]
        empty = [many for many, one in LISTS.items() if lists.get(one) == []]
        if empty:
            raise ValueError(f"{empty[0]} must name at least one value, got an empty text.")
        check_injected(names)
        combined = (dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values()))
        asked = list({tuple(sorted(one.items())): one for one in map(_own_overlap, combined)}.values())
        found = [Experiment(strategies=tuple(strategies.split()), **given, **one) for one in asked]
        lacking = [some for some in needs.split() if not {*some.split("|")} & {*strategies.split()}]
        if lacking:
            told = " and ".join(some.replace("|", " or ") for some in lacking)
            raise ValueError(f"strategies lacks {told}, which this notebook needs, got {strategies!r}.")
        return found
    except ValueError as error:
        raise ParameterError(str(error)) from None


@contextmanager
def checking(*known: str) -> Iterator[None]:
    """Around the checks of a notebook without `points`, whose parameters are `known`: a refusal is told in a sentence.

    Raises:
        ParameterError: for a ValueError inside, or a parameter that papermill injected and the notebook does not have.
    """
    try:
        check_injected(set(known))
        yield
    except ValueError as error:
        raise ParameterError(str(error)) from None


def whole_numbers(name: str, text: str) -> list[int]:
    """The notebook parameter `name`, written with spaces: "1 2 4" → [1, 2, 4].

    Raises:
        ParameterError: one of them is not a whole number ≥ 1, or there is none.
    """
    try:
        found = [checks.whole(name, _number(name, value), 1) for value in str(text).split()]
        if not found:
            raise ValueError(f"{name} must name at least one value, got an empty text.")
    except ValueError as error:
        raise ParameterError(str(error)) from None
    return found


def check_injected(known: set[str]) -> None:
    """Refuse a parameter that papermill injected and the notebook does not have, with a `ParameterError`.

    `known` are the parameters that are used; those assigned in the notebook's own parameters cell count as well.
    """
    cells = _executed_cells()
    injected = [cell for cell in cells if cell.startswith("# Parameters\n")]
    if not injected:
        return
    before = cells[: cells.index(injected[-1])]
    known = known | set(_assigned(before[-1] if before else ""))
    for name in _assigned(injected[-1]):
        try:
            checks.one_of("notebook parameter", name, sorted(known))
        except ValueError as error:
            raise ParameterError(str(error)) from None


def output_folder(path: str | None) -> Path | None:
    """The folder for records and figures, created and tried; relative ones lie below the project's root."""
    return None if path is None else files.writable_folder(files.resolve(path))


def tables_folder(folder: Path | None, name: str, frame: "pd.DataFrame") -> Path | None:
    """Where to write the table `name` and its figures: `folder`, unless a table is there that has other records.

    That one stays, and the new one goes below `folder`/tables, named by its own records; a table that has all the
    records of the one that is there replaces it.
    """
    import pandas as pd

    if folder is None:
        return None
    path = folder / f"{name}.csv"
    if path.exists() and not set(pd.read_csv(path)["record"]) <= set(frame["record"]):
        return files.writable_folder(folder / "tables" / f"{name}-{key(sorted(set(frame['record'])))[:8]}")
    return folder


def agrees(frame: "pd.DataFrame", reference: str | Path, tolerance: float) -> bool:
    """Hold a trained table against a committed one, and print a fixed sentence.

    Figures of training differ between processors; they must not differ by more than `tolerance` (as a share of
    test images).  Points are matched by their parameters (column `record`); where one has no reference, that is
    said, and False returned.  The local CNNs count by their mean: after few epochs a single small one may be ten points
    off on another number of threads.  The coherent model is left out: from random weights, few epochs may or may not
    carry it off chance level.

    Raises:
        AssertionError: a test accuracy lies further off; the message lists the rows.
    """
    import pandas as pd

    def means(of: "pd.DataFrame") -> "pd.Series":
        return of[of["strategy"] != "coherent"].groupby(["record", "strategy"], sort=False)["test_accuracy"].mean()

    path = files.resolve(reference)
    known = pd.read_csv(path, dtype={"subdomain": str}, keep_default_na=False) if path.exists() else None
    if known is None or not set(frame["record"]) <= set(known["record"]):
        print(f"No reference for these parameters in {reference}.")
        return False
    both = means(frame).to_frame().join(means(known).rename("reference"))
    far = both[~((both["test_accuracy"] - both["reference"]).abs() <= tolerance)]
    assert far.empty, f"differs from {reference}:\n{far}"
    but = " but those of the coherent model" if "coherent" in set(frame["strategy"]) else ""
    print(f"Every test accuracy{but} agrees with {reference} within {100 * tolerance:g} points.")
    return True


def _own_overlap(point: dict[str, Any]) -> dict[str, Any]:
    """The grid "2x2+4" is 2x2 with overlap 4."""
    grid, plus, overlap = str(point.get("grid", "")).partition("+")
    return {**point, "grid": grid, "overlap": _number("an overlap after +", overlap)} if plus else point


def _number(what: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{what} must be whole numbers with spaces between them, got {text!r}.") from None


def _executed_cells() -> list[str]:
    """Sources of the cells that this kernel has run, oldest first; none outside IPython."""
    from IPython import get_ipython

    shell = get_ipython()
    return [] if shell is None else [inspect.cleandoc(cell) + "\n" for cell in shell.history_manager.input_hist_raw]


def _assigned(source: str) -> list[str]:
    """Names that a cell assigns at its top level."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return []
    targets = [t for n in body if isinstance(n, ast.Assign) for t in n.targets]
    targets += [n.target for n in body if isinstance(n, ast.AnnAssign)]
    return [t.id for t in targets if isinstance(t, ast.Name)]
