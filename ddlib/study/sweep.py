"""Many points of a table through papermill: expand a plan, skip what is on record, go on after a failure.

A plan is YAML: a notebook, the folder of its records, and its parameters, where a list stands for as many points:

    notebook: 03_transfer_learning
    output: results/cifar10
    parameters:
      dataset: cifar10
      grids: [2x2, 4x4]
      seeds: [0, 1, 2]

A plan of several such blocks has them as a list under `blocks`.
"""

import itertools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checks, files
from . import records
from .experiment import Experiment
from .parameters import LISTS, points
from .workers import Workers

if TYPE_CHECKING:
    import pandas as pd

BLOCK = ("notebook", "output", "parameters")


@dataclass(frozen=True)
class Point:
    """One run of a notebook: its parameters, and the experiment that they describe."""

    notebook: Path
    output: Path
    parameters: dict[str, Any]
    experiment: Experiment

    @property
    def name(self) -> str:
        return self.experiment.name

    def status(self) -> str:
        """ "new", "on record", or "outdated": on record, but figures would come out differently now."""
        path = self.output / f"{self.name}.json"
        if not path.exists():
            return "new"
        try:
            record = records.load(path)
        except files.DamagedFile:
            return "new"  # `Experiment.record` sets it aside
        if not set(self.experiment.strategies) <= set(record.strategies):
            return "new"
        return "outdated" if record.outdated else "on record"


def read_plan(path: str | Path) -> list[Point]:
    """Expand a plan and check all of it, before anything runs.

    Raises:
        ValueError: an unknown key, notebook, parameter or value; the nearest allowed one is named.
    """
    import yaml

    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    blocks = content["blocks"] if isinstance(content, dict) and list(content) == ["blocks"] else [content]
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise ValueError(f"{path}: a plan is a mapping with {', '.join(BLOCK)}, or a list of them under 'blocks'.")
    expanded = [point for block in blocks for point in _expand(block, path)]
    twice = {p.name for p in expanded if sum(q.name == p.name and q.output == p.output for q in expanded) > 1}
    if twice:
        raise ValueError(f"{path} asks for the same point more than once: {', '.join(sorted(twice))}.")
    return expanded


def _expand(block: dict[str, Any], path: Path) -> Iterable[Point]:
    for key in block:
        checks.one_of(f"key of {path.name}", key, BLOCK)
    for key in BLOCK:
        if key not in block:
            raise ValueError(f"{path}: the key {key!r} is missing.")
    folder = files.project_folder() / "notebooks"
    known = {p.stem: _defaults(p) for p in sorted(folder.glob("*.ipynb"))}
    known = {name: defaults for name, defaults in known.items() if "strategies" in defaults}
    name = checks.one_of("notebook", str(block["notebook"]), known)
    notebook, defaults = folder / f"{name}.ipynb", known[name]
    if not isinstance(block["parameters"], dict):
        raise ValueError(f"{path}: parameters must be a mapping, got {block['parameters']!r}.")
    output = files.resolve(block["output"])
    for key in block["parameters"]:
        checks.one_of(f"parameter of {name}", key, defaults)
    lists = {k: v if isinstance(v, list) else [v] for k, v in block["parameters"].items()}
    for values in itertools.product(*lists.values()):
        given = dict(zip(lists, values, strict=True)) | {"output": str(output)}
        asked = {k: v for k, v in {**defaults, **given}.items() if k not in ("output", "reuse")}
        found = points(**asked)
        if len(found) != 1:
            several = {k: asked[k] for k in LISTS if k in asked}
            raise ValueError(f"{path}: a point has one value of each, got {several}; write YAML lists instead.")
        yield Point(notebook, output, {k: _as_text(k, v) for k, v in given.items()}, found[0])


def _as_text(key: str, value: Any) -> Any:
    """Notebooks take their lists as text."""
    return str(value) if key in LISTS else value


def _defaults(notebook: Path) -> dict[str, Any]:
    """The parameters of a notebook with their default values, as papermill sees them."""
    import ast

    from papermill import inspect_notebook

    return {name: ast.literal_eval(p["default"]) for name, p in inspect_notebook(str(notebook)).items()}


def table(plan: list[Point]) -> "pd.DataFrame":
    """A row a point: its name, its status and its parameters."""
    import pandas as pd

    return pd.DataFrame(
        [{"point": p.name, "status": p.status(), "notebook": p.notebook.stem, **p.experiment.parameters} for p in plan]
    )


def run(
    plan: list[Point],
    executor: Executor | None = None,
    *,
    jobs: int = 1,
    force: bool = False,
    report: Callable[[str], None] = print,
) -> "pd.DataFrame":
    """Run the points that are not on record; a failed one does not stop the others.

    Args:
        executor: where the points run; by default on this machine, `jobs` at a time, sharing its cores.
        force: run points that are on record as well.

    Returns:
        A row a point: point, result ("done", "skipped", "failed"), reason.
    """
    import pandas as pd
    from tqdm import tqdm

    checks.whole("jobs", jobs, 1)
    for folder in {point.output for point in plan}:
        files.writable_folder(folder)
    known = {id(point): point.status() for point in plan}
    outdated = [point.name for point in plan if known[id(point)] == "outdated"]
    if outdated and not force:
        report(f"On record, but figures would differ now (--force runs them again): {', '.join(outdated)}")
    todo = [point for point in plan if force or known[id(point)] == "new"]
    results = {(point.output, point.name): ("skipped", known[id(point)]) for point in plan if point not in todo}
    given = os.environ.get("OMP_NUM_THREADS", "")  # the user's own choice stays
    threads = None if executor or given else max(1, (os.cpu_count() or 1) // jobs)
    with nullcontext(executor) if executor else Workers(jobs) as place:

        def submit(points: list[Point], wait: bool) -> dict[Future, Point]:
            return {
                place.submit(run_point, str(p.notebook), str(p.output), p.name, p.parameters, force, threads, wait): p
                for p in points
            }

        tasks, bar = submit(todo, False), tqdm(total=len(todo), desc="points", unit="point", disable=not todo)
        while tasks:
            busy = []
            for task in as_completed(tasks):
                point = tasks[task]
                try:
                    reason = task.result()
                except BrokenProcessPool:  # one worker died, and the pool with it: whose fault it was, is found out
                    reason = _alone(point, force, threads)
                except Exception as error:
                    reason = f"{type(error).__name__}: {error}"
                if reason is None:
                    busy.append(point)
                    continue
                results[point.output, point.name] = ("failed", reason) if reason else ("done", "")
                bar.set_postfix_str(f"{point.name} {'failed' if reason else 'done'}", refresh=False)
                bar.update()
            if busy:
                report(f"Another sweep is at work on these points; waiting for it: {', '.join(p.name for p in busy)}")
            tasks = submit(busy, True)
        bar.close()
    return pd.DataFrame([(p.name, *results[p.output, p.name]) for p in plan], columns=["point", "result", "reason"])


def _alone(point: Point, force: bool, threads: int | None) -> str | None:
    """Run a point that was lost with its pool again, in a process of its own, waiting where it must."""
    arguments = str(point.notebook), str(point.output), point.name, point.parameters, force, threads, True
    with Workers(1) as own:
        try:
            return own.submit(run_point, *arguments).result()
        except BrokenProcessPool:
            return "its process died (killed, or out of memory)"
        except Exception as error:
            return f"{type(error).__name__}: {error}"


def run_point(
    notebook: str, output: str, name: str, parameters: dict[str, Any], force: bool, threads: int | None, wait: bool
) -> str | None:
    """The task of a sweep: execute a notebook.  May run twice.

    Returns:
        Why it failed, or an empty text; None where another sweep is at work on the point and `wait` is False.
    """
    import papermill

    os.environ.update({"DDLIB_PROGRESS": "0"} | ({"OMP_NUM_THREADS": str(threads)} if threads else {}))
    executed = Path(output) / "notebooks" / f"{name}.ipynb"
    for folder in (executed.parent, Path(output) / "checkpoints"):
        folder.mkdir(parents=True, exist_ok=True)
    given = {**parameters, "reuse": not force}
    with files.alone(Path(output) / "checkpoints" / f"{name}.lock", wait) as held:
        if not held:
            return None
        try:
            papermill.execute_notebook(
                notebook,
                str(executed),
                given,
                progress_bar=False,
                log_output=False,
                extra_arguments=["--log-level=ERROR"],
            )
        except papermill.PapermillExecutionError as error:
            return f"{error.ename}: {error.evalue}"
        except Exception as error:  # a kernel that died
            return f"{type(error).__name__}: {error}"
    return ""
