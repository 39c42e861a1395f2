"""Dask for the local CNNs and for sweeps, and the scripts of docs/cluster.md; skipped without the extra `cluster`."""

import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import assert_other_state, assert_same_state, local_cnns

import ddlib
from ddlib import Decomposition, Recipe, train_local
from ddlib.__main__ import main
from ddlib.study import records, sweep

distributed = pytest.importorskip("dask.distributed", reason="needs Dask: pip install 'ddlib[cluster]'")

pytestmark = pytest.mark.slow
PAGE = (Path(__file__).parents[1] / "docs/cluster.md").read_text()
RECIPE = Recipe(epochs=2, batch_size=100, precision="fp32", device="cpu")


def digits_cnns():
    return local_cnns("vgg9", Decomposition.grid((32, 32), 2), classes=10, width=4)


@pytest.fixture(scope="module")
def cluster():
    os.environ["OMP_NUM_THREADS"] = "1"
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options) as cluster:
        yield cluster


def test_dask_gives_the_weights_of_the_loop_bit_for_bit(cluster, one_thread):
    data = ddlib.load_dataset("digits").few(300)
    here, there = digits_cnns(), digits_cnns()
    history = train_local(here, data, RECIPE, engine="loop", progress=False)
    assert_other_state(here, digits_cnns())
    with distributed.Client(cluster) as client, client.get_executor() as executor:
        told = train_local(there, data, RECIPE, engine=executor, progress=False)
    assert_same_state(there, here)
    assert told["epoch"].tolist() == history["epoch"].tolist()
    assert told["loss"].tolist() == pytest.approx(history["loss"].tolist(), rel=1e-12)


def test_a_sweep_on_dask_loses_a_worker_and_its_table_is_complete_and_equal(cluster, one_thread, tmp_path, capsys):
    given = "dataset: digits, train_size: 200, width: 4, epochs: 30, dense_epochs: 1, precision: fp32"
    plan, frames = {}, {}
    for name in ("dask", "here"):
        (tmp_path / name).mkdir()
        plan[name] = tmp_path / name / "plan.yaml"
        block = f"parameters: {{{given}, strategies: local vote cnn-dnn, grids: [2x2], seeds: [0, 1]}}"
        plan[name].write_text(f"notebook: 02_aggregation\noutput: {tmp_path / name / 'out'}\n{block}\n")
    checkpoints, killed = tmp_path / "dask" / "out" / "checkpoints", []

    def kill():
        while not list(checkpoints.glob("local-*.pt")):
            time.sleep(0.005)
        with distributed.Client(cluster) as client:
            os.kill(next(iter(client.run(os.getpid).values())), 9)
        killed.append(True)

    killer = threading.Thread(target=kill)
    killer.start()
    assert main(["sweep", str(plan["dask"]), "--dask", cluster.scheduler_address]) == 0
    killer.join()
    assert killed
    assert "Dask dashboard: http" in capsys.readouterr().out
    for point in sweep.read_plan(plan["here"]):
        point.experiment.record(tmp_path / "here" / "out", progress=False)
    for name in plan:
        frames[name] = records.gather(tmp_path / name / "out").drop(columns=["seconds"])
    assert len(frames["here"]["record"].unique()) == 2
    assert frames["dask"].equals(frames["here"])


def test_a_scheduler_that_is_not_there_is_told(tmp_path, capsys):
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"notebook: 02_aggregation\noutput: {tmp_path}\nparameters: {{grids: [2x2]}}\n")
    assert main(["sweep", str(plan), "--dask", "nonsense://x"]) == 2
    assert "nonsense" in capsys.readouterr().err


# ── docs/cluster.md ──


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


def test_the_job_script_of_the_page_is_what_its_code_prints(capsys):
    pytest.importorskip("dask_jobqueue", reason="needs dask-jobqueue: pip install 'ddlib[cluster]'")
    (code,) = [block for block in blocks("python") if "SLURMCluster" in block]
    names = {"__name__": "slurm_sweep"}
    exec(compile(code, "docs/cluster.md", "exec"), names)
    names["cluster"].close()
    printed = re.sub(r"tcp://\S+", "tcp://ADDRESS", capsys.readouterr().out)
    (shown,) = [block for block in blocks("") if "#SBATCH" in block]
    assert printed.strip() == shown.strip()


def test_the_first_example_of_the_page_runs(tmp_path, monkeypatch):
    """In a thread: worker processes would look for the page as a script."""
    code = blocks("python")[0].replace('"runs/local"', repr(str(tmp_path / "local")))
    monkeypatch.setattr(ddlib, "process_pool", lambda workers, threads: ThreadPoolExecutor(1))
    names = {"__name__": "__main__"}
    exec(compile(code, "docs/cluster.md", "exec"), names)
    assert {p.name for p in tmp_path.iterdir()} == {f"local.{i}" for i in range(4)}
