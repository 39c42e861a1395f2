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

import ast
import itertools
import math
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import pandas as pd
import papermill
from filelock import FileLock
from joblib import cpu_count

from .._internal import checks, files
from .._internal.progress import progress_bar
from . import records
from .experiment import Experiment
from .parameters import LISTS, notebooks_folder, output_of, points, read_yaml, spelled

BLOCK = ("notebook", "output", "parameters")
LEFT = "the minutes are over; it goes on from its last epoch"


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
        try:
            record = records.load(self.output / f"{self.name}.json")
        except files.DamagedFile:
            return "new"  # or damaged, and `Experiment.record` sets it aside
        if not {*self.experiment.strategies} <= {*record.strategies}:
            return "new"
        return "outdated" if record.outdated else "on record"


def read_plan(path: str | Path) -> list[Point]:
    """Expand a plan and check all of it, before anything runs.

    Raises:
        ValueError: an unknown key, notebook, parameter or value (the nearest allowed one is named), or no points.
    """
    path, content = read_yaml(path)
    blocks = content["blocks"] if isinstance(content, dict) and list(content) == ["blocks"] else [content]
    if not isinstance(blocks, list) or not blocks or not all(isinstance(block, dict) for block in blocks):
        raise ValueError(f"{path}: a plan is a mapping with {', '.join(BLOCK)}, or a list of them under 'blocks'.")
    plan = [point for block in blocks for point in _expand(block, path)]
    twice = [name for (_, name), count in Counter((p.output, p.name) for p in plan).items() if count > 1]
    if twice:
        raise ValueError(f"{path} asks for the same point more than once: {', '.join(twice)}.")
    return plan


def _expand(block: dict[str, Any], path: Path) -> Iterator[Point]:
    for key in (*block, *BLOCK):
        if block.get(checks.one_of(f"key of {path.name}", key, BLOCK)) in (None, ""):
            raise ValueError(f"{path}: the key {key!r} is missing or empty.")
    if not isinstance(block["parameters"], dict):
        raise ValueError(f"{path}: parameters must be a mapping, got {block['parameters']!r}.")
    known = {notebook.stem: notebook for notebook in sorted(notebooks_folder().glob("*.ipynb"))}
    notebook = known[checks.one_of("notebook", str(block["notebook"]), known)]
    usual = {k: ast.literal_eval(p["default"]) for k, p in papermill.inspect_notebook(str(notebook)).items()}
    if "strategies" not in usual:
        raise ValueError(f"notebook {notebook.stem!r} of {path} makes no records of points.")
    if "remedies" in usual:  # its points are these parameters by each remedy, with and without augmentation
        raise ValueError(f"notebook {notebook.stem!r} of {path} makes several records of a point: run it by papermill.")
    parameters = spelled(block["parameters"], usual)
    for key in parameters:
        checks.one_of(f"parameter of {notebook.stem}", key, usual)
    lists = {k: v if isinstance(v, list) else [v] for k, v in parameters.items()}
    if empty := [key for key, several in lists.items() if not several]:
        raise ValueError(f"{path}: {empty[0]} must name at least one value, got none.")
    output = output_of(path, block["output"])
    for values in itertools.product(*lists.values()):
        given = dict(zip(lists, values, strict=True))
        asked = {k: v for k, v in {**usual, **given}.items() if k in {*Experiment.__dataclass_fields__, *LISTS}}
        found = points(**asked)
        if len(found) != 1:
            raise ValueError(f"{path}: a point has one value of each, got {asked}; write YAML lists instead.")
        yield Point(notebook, output, {**given, "output": str(output)}, found[0])


def table(plan: list[Point]) -> pd.DataFrame:
    """A row a point: its name, its status and its parameters."""
    rows = [
        {"point": p.name, "status": p.status(), "notebook": p.notebook.stem} | p.experiment.parameters for p in plan
    ]
    return pd.DataFrame(rows)


def select(plan: list[Point], expression: str) -> list[Point]:
    """The points for which a pandas query over the columns of `table` holds, e.g. "grid == '2x2'".

    Raises:
        ValueError: it cannot be evaluated, or holds for none.
    """
    frame = table(plan)
    try:
        chosen = [plan[index] for index in frame.query(expression).index]
    except Exception as error:
        raise ValueError(f"{expression!r} cannot be evaluated ({error}); columns: {', '.join(frame)}.") from None
    if not chosen:
        raise ValueError(f"none of the {len(plan)} points of the plan has {expression!r}.")
    return chosen


def run(
    plan: list[Point],
    executor: Executor | None = None,
    *,
    jobs: int = 1,
    force: bool = False,
    notebooks: bool = True,
    minutes: float = 0,
) -> pd.DataFrame:
    """Run the points that are not on record; a failure is kept as its reason, and the others go on.

    Args:
        executor: any `concurrent.futures.Executor` whose workers see the folders; None for threads, each with the
            kernel of its notebook, a process of its own, or for processes, where no notebooks are executed.
        jobs: of these; they share the cores, unless OMP_NUM_THREADS is set.
        force: run points that are on record as well; without it, outdated ones are listed and stay as they are.
        notebooks: keep an executed notebook of each point; without, a point has no kernel to start.
        minutes: after so many, what runs is stopped; it goes on from there the next time, but with `force`.  0: never.

    Returns:
        A row a point: point, result ("done", "skipped", "failed", "left"), reason.
    """
    force, notebooks = checks.flag("force", force), checks.flag("notebooks", notebooks)
    deadline = time.time() + 60 * checks.real("minutes", minutes, 0) if minutes else math.inf
    if minutes and executor is not None and not notebooks:
        raise ValueError("minutes without notebooks are kept by processes of this machine: give jobs, no executor.")
    for folder in {point.output / below for point in plan for below in ("checkpoints", "notebooks")}:
        files.writable_folder(folder)
    frame = pd.DataFrame({"point": [p.name for p in plan], "result": "skipped", "reason": [p.status() for p in plan]})
    outdated = frame["point"][frame["reason"] == "outdated"]
    if len(outdated) and not force:
        print(f"On record, but figures would differ now (--force runs them again): {', '.join(outdated)}")
    if executor is None:
        jobs = checks.integer("jobs", jobs, 1)
        executor = ThreadPoolExecutor(jobs) if notebooks else _processes(jobs)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_count() // jobs)))  # of the kernels, by what is ours
    tasks: dict[Future, int] = {}
    chosen = frame.index if force else frame.index[frame["reason"] == "new"]
    with progress_bar("points", len(chosen), leave=True) as bar:  # before `execute` switches bars off
        try:
            for index in chosen:
                point = plan[index]
                given = {**point.parameters, "reuse": not force} if notebooks else None
                tasks[executor.submit(run_point, point, given, deadline, not force)] = index
            for task in as_completed(tasks):
                error, index = task.exception(), tasks[task]
                reason = f"{type(error).__name__}: {error}" if error else task.result()
                result = "left" if reason == LEFT else "failed" if reason else "done"
                frame.loc[index, ["result", "reason"]] = [result, reason]
                bar.set_postfix_str(" ".join(frame.loc[index, ["point", "result"]]), refresh=False)
                bar.update()
        finally:
            for task in tasks:  # where Ctrl-C has left some; those that run go on until the process ends
                task.cancel()
    return frame


def run_point(point: Point, parameters: dict[str, Any] | None, deadline: float, reuse: bool = True) -> str:
    """The task of a sweep: execute a notebook with these parameters; None: train without, see `Experiment.record`.

    May run twice; the second waits, and finds the record.

    Returns:
        Why it failed, or an empty text.
    """
    with FileLock(point.output / "checkpoints" / f"{point.name}.lock"):
        if time.time() >= deadline:
            return LEFT
        if parameters is None:
            return _train(point, deadline, reuse)
        executed = point.output / "notebooks" / f"{point.name}.ipynb"
        return execute(point.notebook, executed, parameters, deadline=deadline)


class _MinutesOver(KeyboardInterrupt):
    """What the alarm raises: like Ctrl-C, nothing takes it for an error of its own."""


def _ring(*_: Any) -> None:
    raise _MinutesOver


def _end_with_the_sweep() -> None:
    """A worker ends at Ctrl-C, and when its parent ends, however that does: else it would go on to further points."""

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=watch, daemon=True).start()


def _processes(jobs: int) -> Executor:
    return ProcessPoolExecutor(jobs, get_context("spawn"), _end_with_the_sweep)


def _train(point: Point, deadline: float, reuse: bool) -> str:
    """Alone in its process, which the alarm interrupts; each training goes on from its last epoch the next time."""
    timed = deadline < math.inf
    try:
        if timed:
            signal.signal(signal.SIGALRM, _ring)
            signal.setitimer(signal.ITIMER_REAL, max(deadline - time.time(), 0.001))
        point.experiment.run(point.output, reuse=reuse, progress=False)
    except _MinutesOver:
        return LEFT
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return ""


def execute(
    notebook: str | Path,
    executed: Path,
    parameters: dict[str, Any],
    again: bool = True,
    deadline: float = math.inf,
) -> str:
    """Run a notebook, quietly; why it failed, the error's name and value, or its line, or an empty text."""
    os.environ["DDLIB_PROGRESS"] = "0"
    quiet = {"progress_bar": False, "log_output": False, "extra_arguments": ["--log-level=CRITICAL"]}
    if deadline < math.inf:
        quiet["execution_timeout"] = max(1, round(deadline - time.time()))
    try:
        papermill.execute_notebook(str(notebook), str(executed), parameters, **quiet)
    except Exception as error:  # of a cell, or a kernel that died, a full disk
        if again and "before replying" in str(error):  # another kernel took its ports before it was up
            return execute(notebook, executed, parameters, again=False, deadline=deadline)
        if deadline < math.inf and isinstance(error, TimeoutError):  # what fails by itself has failed, however late
            return LEFT
        told = str(getattr(error, "evalue", error)).strip()
        lines = re.findall(r"^-+> \d+ +(.+)$", str(error), re.M)  # that its traceback points at
        told = told or (f"in the line '{lines[-1]}'" if lines else "it gives no reason")
        return f"{getattr(error, 'ename', type(error).__name__)}: {told}"
    return ""


@contextmanager
def dask_executor(address: str, workers: int = 1) -> Iterator[Executor]:
    """The executor of a Dask cluster (extra `cluster`): of the scheduler at an address, or "local", on this machine.

    Raises:
        ImportError: dask.distributed is not installed.
        OSError: no scheduler answers at the address.
    """
    try:
        from dask.distributed import Client, LocalCluster
    except ImportError as error:
        raise ImportError(f"Dask is not installed ({error}): pip install 'ddlib[cluster]'.") from None
    here = {"threads_per_worker": 1, "dashboard_address": ":0"}
    cluster = LocalCluster(workers, **here) if address == "local" else nullcontext(address)
    with cluster as place, Client(place, timeout=20) as client:
        print(f"Dask dashboard: {client.dashboard_link}")
        with client.get_executor(retries=2) as executor:
            yield executor
