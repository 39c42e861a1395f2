"""Sweeps: plans are checked before anything runs, points on record are skipped, a failure stops nothing else."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import ALONE, hears_interrupts, wait_for
from nbclient.exceptions import CellTimeoutError
from papermill.exceptions import PapermillExecutionError

from ddlib.__main__ import main
from ddlib._internal.files import load_tensors
from ddlib.study import records, sweep

ROOT = Path(__file__).parents[1]
PLAN = "notebook: 02_aggregation\noutput: x\nparameters:"
TINY = "width: 4, epochs: 1, dense_epochs: 1, train_size: 200, strategies: local vote cnn-dnn"


def plan_file(tmp_path: Path, parameters: str, notebook: str = "02_aggregation") -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(f"notebook: {notebook}\noutput: {tmp_path / 'out'}\nparameters: {{{parameters}}}\n")
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks/plans").glob("*.yaml")), ids=lambda p: p.stem)
def test_committed_plans_expand(path: Path):
    plan = sweep.read_plan(path)
    assert len({point.name for point in plan}) == len(plan) > 0


def test_lists_are_expanded_and_named_apart(tmp_path: Path):
    plan = sweep.read_plan(plan_file(tmp_path, f"{TINY}, grids: [2x2, 2x3], seeds: [0, 1], overlaps: [0, 2]"))
    assert len(plan) == len({point.name for point in plan}) == 8
    assert {point.experiment.grid for point in plan} == {"2x2", "2x3"}
    assert all(point.status() == "new" for point in plan)


def test_a_plan_may_say_grid_or_grids(tmp_path: Path):
    usual = sweep.read_plan(plan_file(tmp_path, f"{TINY}, grids: [2x2, 2x3], seeds: [0, 1]"))
    assert usual == sweep.read_plan(plan_file(tmp_path, f"{TINY}, grid: [2x2, 2x3], seed: [0, 1]"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("notebok: 02_aggregation\noutput: x\nparameters: {}", "'notebok'. Did you mean 'notebook'"),
        ("notebook: 02_agregation\noutput: x\nparameters: {}", "Did you mean '02_aggregation'"),
        ("notebook: 02_aggregation\nparameters: {}", "the key 'output' is missing"),
        (f"{PLAN} {{epoch: 3}}", "'epoch'. Did you mean 'epochs'"),
        (f"{PLAN} {{grids: [2x2], epochs: [1, 0]}}", "epochs must be a whole number ≥ 1"),
        (f"{PLAN} {{grids: [2x2], dataset: cifar}}", "Did you mean 'cifar10'"),
        (f"{PLAN} {{grids: 2x2 4x4}}", "write YAML lists instead"),
        (f"{PLAN} {{grids: [2x2, 2x2]}}", "more than once"),
        (f"{PLAN} {{dataset: tf_flowers, grids: [2x2], options: size=-3}}", "size must be a whole number ≥ 1, got -3"),
        (f"{PLAN} {{grids: [regions]}}", "has no named regions"),
        ("notebook: 00_quickstart\noutput: x\nparameters: {}", "notebook '00_quickstart' of"),
        ("notebook: 08_regimes\noutput: x\nparameters: {}", "makes several records of a point"),
        ("- a\n- b", "a plan is a mapping"),
        ("blocks: []", "a plan is a mapping"),
        (f"{PLAN} {{grids: [2x2], seeds: []}}", "seeds must name at least one value, got none"),
        ("notebook: 02_aggregation\noutput: None\nparameters: {grids: [2x2]}", "output must name a folder, got 'None'"),
        ("notebook: 02_aggregation\noutput: 5\nparameters: {grids: [2x2]}", "output must name a folder, got 5"),
        ("a: [", "is not YAML"),
        ("!!python/object/apply:os.system ['touch hostile']", "is not YAML"),
    ],
)
def test_a_wrong_plan_is_refused_before_anything_runs(tmp_path: Path, content: str, told: str, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "run", lambda *_, **__: pytest.fail("a point was run"))
    (tmp_path / "plan.yaml").write_text(content)
    assert main(["sweep", "plan.yaml"]) == 2
    assert re.search(re.escape(told), capsys.readouterr().err)
    assert [p.name for p in tmp_path.iterdir()] == ["plan.yaml"]


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(("only", "told"), [("seed == 5", "none of the 1 points of the plan has"), ("", "cannot be")])
def test_a_choice_of_no_points_is_refused(tmp_path: Path, only: str, told: str, dry: list[str], capsys):
    assert main(["sweep", str(plan_file(tmp_path, f"{TINY}, grids: [2x2]")), "--only", only, *dry]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_sweep_of_two_jobs_goes_on_after_a_failure_and_skips_what_is_on_record(tmp_path: Path, capsys, one_thread):
    given = f"{TINY}, grids: [2x2], precision: fp32, batch_size: [256, 64, 128]"  # 256 images a step of 200 fail
    path, out = plan_file(tmp_path, given), tmp_path / "out"
    assert main(["sweep", str(path), "--jobs", "2"]) == 1
    assert "batch_size 256 is larger than the data: 200 images." in capsys.readouterr().out
    first = {p.name: p.read_bytes() for p in out.glob("*.json")}
    done = [point for point in sweep.read_plan(path) if point.experiment.batch_size < 256]
    assert {*first} == {f"{point.name}.json" for point in done}
    for point in done:
        point.experiment.record(tmp_path / "here", progress=False)
    swept, alone = (records.gather(folder).drop(columns="seconds") for folder in (out, tmp_path / "here"))
    assert swept.equals(alone)

    assert main(["sweep", str(path), "--only", "batch_size < 256"]) == 0
    assert "skipped" in capsys.readouterr().out
    assert {p.name: p.read_bytes() for p in out.glob("*.json")} == first
    assert main(["sweep", str(path), "--only", "batch_size == 64", "--force"]) == 0
    again = {p.name for p in out.glob("*.json") if p.read_bytes() != first[p.name]}
    assert again == {f"{point.name}.json" for point in done if point.experiment.batch_size == 64}
    assert records.gather(out).drop(columns="seconds").equals(alone)


def test_without_notebooks_the_records_are_the_same(tmp_path, capsys, one_thread):
    path, out = plan_file(tmp_path, f"{TINY}, grids: [2x2], precision: fp32, batch_size: 50"), tmp_path / "out"
    assert main(["sweep", str(path), "--without-notebooks", "--minutes", "10"]) == 0
    [point] = sweep.read_plan(path)
    again = point.experiment.run(tmp_path / "here", progress=False)
    assert records.gather(out)["test_accuracy"].tolist() == again["test_accuracy"].tolist()
    assert list(out.glob("notebooks/*")) == []
    assert sweep.run_point(point, None, deadline=time.time()) == sweep.LEFT
    before = (out / f"{point.name}.json").stat().st_mtime_ns
    for force, result in ((False, "skipped"), (True, "done")):
        found = sweep.run([point], ThreadPoolExecutor(1), notebooks=False, force=force)
        assert found["result"].tolist() == [result]
        assert ((out / f"{point.name}.json").stat().st_mtime_ns > before) == force


def test_a_point_is_stopped_when_the_minutes_are_over(tmp_path, one_thread):
    endless = f"{TINY}, grids: [2x2], batch_size: 50".replace("epochs: 1,", "epochs: 100000,", 1)
    [point] = sweep.read_plan(plan_file(tmp_path, endless))
    before = signal.getsignal(signal.SIGALRM)
    (tmp_path / "out/checkpoints").mkdir(parents=True)
    try:
        assert sweep.run_point(point, None, deadline=time.time() + 3) == sweep.LEFT
    finally:
        signal.signal(signal.SIGALRM, before)
    assert list(tmp_path.glob("out/checkpoints/*local*"))  # from which it goes on
    assert point.status() == "new"


def test_without_the_projects_notebooks_a_sweep_says_where_to_call_it(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("ddlib.study.parameters.project_folder", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no folder {tmp_path}/notebooks: pip does not install .*call this in"):
        sweep.read_plan(plan_file(tmp_path, "grids: [2x2]"))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system ties no process to a core")
def test_kernels_share_the_cores_of_this_process():
    code = "import os; from ddlib.study import sweep; sweep.run([], jobs=1); print(os.environ['OMP_NUM_THREADS'])"
    environment = {name: value for name, value in ALONE.items() if name != "OMP_NUM_THREADS"}
    one = {min(os.sched_getaffinity(0))}
    pinned = {"preexec_fn": lambda: os.sched_setaffinity(0, one), "env": environment}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **pinned).stdout == "1\n"


def test_a_kernel_whose_ports_were_taken_is_started_again(monkeypatch, tmp_path):
    told = [RuntimeError("Kernel died before replying to kernel_info"), None]

    def run(*_, **__):
        if error := told.pop(0):
            raise error

    monkeypatch.setattr(sweep.papermill, "execute_notebook", run)
    assert sweep.execute("a.ipynb", tmp_path / "out.ipynb", {}) == ""
    told[:] = 2 * [RuntimeError("Kernel died before replying to kernel_info")]
    assert sweep.execute("a.ipynb", tmp_path / "out.ipynb", {}).startswith("RuntimeError: Kernel died")
    assert not told


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (CellTimeoutError("late"), sweep.LEFT),
        (KeyError(1), "KeyError: 1"),
        (PapermillExecutionError(0, 1, "", "IndexError", "", ["----> 2 a[5]"]), "IndexError: in the line 'a[5]'"),
        (IndexError(), "IndexError: it gives no reason"),
    ],
)
def test_a_notebook_that_fails_after_the_minutes_has_failed(monkeypatch, tmp_path, error, told):
    def run(*_, **__):
        raise error

    monkeypatch.setattr(sweep.papermill, "execute_notebook", run)
    assert sweep.execute("a.ipynb", tmp_path / "out.ipynb", {}, deadline=time.time() - 1) == told


@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["--without-notebooks"]])
def test_an_interrupted_sweep_ends_at_once_with_its_kernel_or_worker(tmp_path: Path, how: list[str]):
    path = plan_file(tmp_path, TINY.replace("epochs: 1", "epochs: 60", 1) + ", grids: [2x2], precision: fp32")
    command = [sys.executable, "-m", "ddlib", "sweep", str(path), *how]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ALONE, preexec_fn=hears_interrupts)
    checkpoints = tmp_path / "out" / "checkpoints"
    wait_for(lambda: list(checkpoints.glob("local-*.pt")))
    started.send_signal(signal.SIGINT)
    _, told = started.communicate(timeout=30)
    assert started.returncode == 130
    assert "what was finished is kept" in told
    assert "Traceback" not in told
    time.sleep(1)  # a kernel notices the end of its parent within a second
    (kept,) = checkpoints.glob("local-*.pt")
    reached = len(load_tensors(kept)["history"])
    assert reached < 60
    time.sleep(1)
    assert len(load_tensors(kept)["history"]) == reached, "the kernel or worker ended with the sweep"
    assert not list((tmp_path / "out").glob("*.json"))


def test_a_failure_stops_nothing_else_and_what_is_on_record_is_skipped(tmp_path: Path, monkeypatch):
    """In this process, without kernels."""
    plan = sweep.read_plan(plan_file(tmp_path, f"{TINY}, grids: [2x2], seeds: [0, 1]"))
    asked, broken = [], [0]

    def execute(notebook, executed, given, deadline):
        asked.append(given["seeds"])
        if given["seeds"] in broken:
            return "ValueError: on purpose"
        plan[given["seeds"]].experiment.record(tmp_path / "out", progress=False)
        return ""

    monkeypatch.setattr(sweep, "execute", execute)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # a sweep sets it where it is not set
    assert sweep.run(plan)["result"].tolist() == ["failed", "done"]
    broken.clear()
    assert sweep.run(plan)["result"].tolist() == ["done", "skipped"]
    assert asked == [0, 1, 0]
    assert set(sweep.table(plan)["status"]) == {"on record"}


def test_outdated_records_are_listed_and_kept_and_damaged_ones_are_missing(tmp_path: Path, monkeypatch, capsys):
    plan = sweep.read_plan(plan_file(tmp_path, f"{TINY}, grids: [2x2]"))
    plan[0].experiment.record(tmp_path / "out", progress=False)
    assert plan[0].status() == "on record"
    monkeypatch.setattr(records, "RESULTS", records.RESULTS + 1)
    assert plan[0].status() == "outdated"
    results = sweep.run(plan)
    assert list(results["result"]) == ["skipped"]
    assert plan[0].name in capsys.readouterr().out
    path = tmp_path / "out" / f"{plan[0].name}.json"
    path.write_text(path.read_text()[:-20])
    assert plan[0].status() == "new"  # what is damaged counts as missing
