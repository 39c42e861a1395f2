"""Long runs survive: what is killed goes on, what is full or damaged is told, and nothing is torn.

Damaged files and hostile ones are in test_training, test_experiment, test_files and test_downloads.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
import yaml
from filelock import FileLock
from helpers import ALONE, wait_for

from ddlib import Experiment, files
from ddlib.study import records, sweep

POINT = {"dataset": "digits", "train_size": 256, "width": 8, "batch_size": 64, "dense_epochs": 2, "precision": "fp32"}


def epochs_done(folder: Path, stage: str) -> int:
    for path in (folder / "checkpoints").glob(f"{stage}-*.pt"):
        return len(files.load_tensors(path)["history"])
    return 0


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of every training, by the names of their checkpoints, which all that determines them goes into."""
    found = {}
    for path in (folder / "checkpoints").glob("*.pt"):
        found |= {f"{path.name}/{name}": value for name, value in files.load_tensors(path)["tensors"].items()}
    return found


def assert_same_weights(folder: Path, other: Path) -> None:
    a, b = weights(folder), weights(other)
    assert a.keys() == b.keys() != set()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


# ── killed ──


@pytest.mark.slow
def test_killed_at_a_random_moment_of_each_training_it_goes_on_to_the_same_bits(tmp_path, one_thread):
    epochs = 10
    point = Experiment(**POINT, epochs=epochs, strategies=("transfer", "coherent"))
    given = {**POINT, "epochs": epochs, "strategies": point.strategies}
    code = f"import ddlib; ddlib.Experiment(**{given!r}).record({str(tmp_path / 'killed')!r}, progress=False)"
    at = {}
    for stage in ("local", "transfer", "coherent"):
        started = subprocess.Popen([sys.executable, "-c", code], env=ALONE)
        wait_for(lambda stage=stage: epochs_done(tmp_path / "killed", stage))
        time.sleep(random.Random(os.urandom(8)).uniform(0, 0.2))
        started.kill()
        started.wait()
        at[stage] = epochs_done(tmp_path / "killed", stage)
    assert all(0 < done < epochs for done in at.values()), at
    found = point.record(tmp_path / "killed", progress=False)
    expected = point.record(tmp_path / "whole", progress=False)
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
    timeless = [name for name in expected.arrays if not name.endswith("/seconds")]
    assert all(np.array_equal(found.arrays[name], expected.arrays[name]) for name in timeless), at


def torchrun(folder: Path, restarts: int) -> subprocess.Popen:
    config = folder / "coherent.yaml"
    folder.mkdir()
    config.write_text(yaml.safe_dump({**POINT, "epochs": 12, "strategy": "coherent", "output": str(folder)}))
    agent = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*agent, "--max-restarts", str(restarts), "-m", "ddlib", "coherent", "--config", str(config)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ALONE)


@pytest.mark.slow
def test_a_killed_rank_stops_the_others_and_a_restart_goes_on(tmp_path):
    """What is said of it is in test_ranks."""
    killed = tmp_path / "killed"
    agent = torchrun(killed, 1)
    wait_for(lambda: epochs_done(killed, "coherent"))
    ranks = psutil.Process(agent.pid).children()
    next(rank for rank in ranks if rank.environ().get("RANK") == "1").kill()
    wait_for(lambda: not any(rank.is_running() for rank in ranks))
    done = epochs_done(killed, "coherent")
    assert 0 < done < 12
    told, _ = agent.communicate(timeout=300)
    assert agent.returncode == 0, told

    whole = torchrun(tmp_path / "whole", 0)
    told, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, told
    assert_same_weights(killed, tmp_path / "whole")


# ── sweeps ──


def plan_of(folder: Path, **parameters) -> list[sweep.Point]:
    path = folder / "plan.yaml"
    given = {**POINT, "epochs": 1, "strategies": "local vote cnn-dnn", "grids": ["2x2"], **parameters}
    path.write_text(json.dumps({"notebook": "02_aggregation", "output": str(folder / "out"), "parameters": given}))
    return sweep.read_plan(path)


@pytest.mark.slow
def test_a_dead_kernel_fails_its_point_alone_and_the_rerun_does_only_that(tmp_path):
    plan = plan_of(tmp_path, seeds=[0, 1], epochs=[20])  # long enough to be found alive
    results = []
    work = threading.Thread(target=lambda: results.append(sweep.run(plan)))
    work.start()
    wait_for(lambda: epochs_done(tmp_path / "out", "local"))
    (kernel,) = [c for c in psutil.Process().children(recursive=True) if "ipykernel_launcher" in " ".join(c.cmdline())]
    kernel.kill()
    work.join(300)
    (frame,) = results
    assert frame["result"].tolist() == ["failed", "done"], frame.to_string()
    assert "DeadKernelError" in frame["reason"][0]
    kept = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.json")}
    assert list(kept) == [f"{plan[1].name}.json"]
    again = sweep.run(plan)
    assert again["result"].tolist() == ["done", "skipped"]
    assert sweep.table(plan)["status"].tolist() == ["on record", "on record"]
    assert {p: (tmp_path / "out" / p).read_bytes() for p in kept} == kept
    assert len(records.gather(tmp_path / "out")["record"].unique()) == 2


def test_a_point_that_another_sweep_is_at_is_waited_for(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    started = []
    monkeypatch.setattr(sweep, "execute", lambda *_, **__: started.append(True))
    point = SimpleNamespace(notebook="a.ipynb", output=tmp_path, name="point")
    work = threading.Thread(target=sweep.run_point, args=(point, {}, float("inf")))
    with FileLock(tmp_path / "checkpoints" / "point.lock"):
        work.start()
        work.join(1)
        assert not started
    work.join(60)
    assert started


# ── a full disk ──


@contextmanager
def files_no_larger_than(size: int):
    """What a full disk does to a long file, on any machine."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_is_told_and_earlier_results_stay(tmp_path):
    first = Experiment(**POINT, epochs=1, strategies=("average",))
    first.record(tmp_path, progress=False)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    more = Experiment(**POINT, epochs=1, strategies=("average", "global"), seed=1)
    with files_no_larger_than(20_000), pytest.raises(OSError, match=r"could not be written \(File too large\)"):
        more.record(tmp_path, progress=False)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    more.record(tmp_path, progress=False)
    assert len(records.load_all(tmp_path)) == 2
