"""The coherent model over ranks: the mathematics of one process, and its checkpoints."""

import copy
import os
import signal
import socket
from concurrent.futures import wait
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch
from helpers import assert_other_state, assert_same_state, local_cnns
from torch import nn

import ddlib
from ddlib import CNNDNN, Decomposition, DenseAggregator, Recipe, files, process_pool
from ddlib import ranks as distributed

PLAIN = Recipe(epochs=1, batch_size=16, rate=0.02, momentum=0.0, weight_decay=5e-4, precision="fp32", device="cpu")
LONGER = replace(PLAIN, epochs=4, momentum=0.9)
TIMELESS = ["epoch", "loss", "train_accuracy", "rate"]


@pytest.fixture(scope="module")
def data(tiny):
    """48 images: three steps of 16."""
    return replace(tiny, train=replace(tiny.train, images=tiny.train.images[:48], labels=tiny.train.labels[:48]))


def coherent(seed=0):
    """Five local CNNs on windows of several shapes, in double precision: two ranks have unequal shares."""
    local = local_cnns("vgg9", Decomposition.grid((12, 12), (1, 5), 2), channels=3, width=6, seed=seed)
    return CNNDNN(local, DenseAggregator(5, 4, hidden=(16, 16))).double()


# ── what the ranks run: top-level functions ──


def joined(place, task, model, *arguments):
    """Run a task as one of several ranks, on a copy of the model: processes of one host share what they are sent."""
    number, ranks, port = place
    os.environ.update(RANK=str(number), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with distributed.process_group(timeout=60):
        return task(copy.deepcopy(model), *arguments)


def train(model, data, recipe, checkpoint=None, stop_after=None):
    """The trained model and its history; with `stop_after`, stopped after so many epochs."""
    epochs = []

    def stop(part):
        epochs.append(None)
        if len(epochs) == stop_after:
            raise KeyboardInterrupt
        return 0.5

    metrics = {"m": stop, "test_accuracy": lambda m: ddlib.accuracy(ddlib.predict(m, data.test), data.test.labels)}
    try:
        given = {"metrics": metrics, "checkpoint": checkpoint, "progress": False}
        return model, distributed.train_coherent(model, data, recipe, **given)
    except KeyboardInterrupt:
        return None, None


def disturbed(model, data, recipe):
    """The second rank sees other probabilities than the first."""
    real = distributed.DistributedCNNDNN.gather
    distributed.DistributedCNNDNN.gather = lambda self, own: real(self, own) + 1e-6 * distributed.rank()
    try:
        return distributed.train_coherent(model, data, recipe, progress=False)
    finally:
        distributed.DistributedCNNDNN.gather = real


def lost(model, data, recipe, checkpoint):
    """The second rank is killed after its second epoch."""

    def end(part):
        if distributed.rank() == 1 and len(epochs) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        epochs.append(None)
        return 0

    epochs = []
    return distributed.train_coherent(model, data, recipe, metrics={"m": end}, checkpoint=checkpoint, progress=False)


@pytest.fixture(scope="module")
def on_ranks():
    """Call a task on so many processes at once; returns what each returned."""
    pools = [process_pool(1) for _ in range(4)]

    def call(ranks, task, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        tasks = [pools[r].submit(joined, (r, ranks, port), task, *arguments) for r in range(ranks)]
        wait(tasks, 120)
        return [task.result(0) for task in tasks]

    yield call
    for pool in pools:
        pool.shutdown()


@pytest.fixture
def alone(one_thread):
    """The same in one process."""

    def fit(model, data, recipe, **options):
        return ddlib.fit(model, data, recipe, progress=False, **options)

    return fit


# ── the same mathematics ──


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_compute_what_one_process_computes(data, on_ranks, alone, ranks):
    begin, whole = coherent(), coherent()
    metric = {"test_accuracy": lambda m: ddlib.accuracy(ddlib.predict(m, data.test), data.test.labels)}
    expected = alone(whole, data, PLAIN, metrics=metric)
    trained = on_ranks(ranks, train, begin, data, PLAIN)
    for model, history in trained:
        assert_same_state(model, whole, 1e-9)
        assert_same_state(model, trained[0][0])  # bit for bit
        assert_other_state(model, begin)
        for column in [*TIMELESS, "test_accuracy"]:  # followed by all ranks together
            assert history[column].tolist() == pytest.approx(expected[column].tolist(), rel=1e-9)


def test_copies_of_the_dense_network_that_differ_are_an_error(data, on_ranks):
    with pytest.raises(RuntimeError, match=r"copies of the dense network differ between ranks \(0: \w+, 1: \w+\)"):
        on_ranks(2, disturbed, coherent(), data, PLAIN)


@pytest.mark.parametrize(
    ("subdomains", "ranks", "expected"),
    [(4, 1, [4]), (4, 2, [2, 2]), (4, 3, [2, 1, 1]), (7, 4, [2, 2, 2, 1]), (3, 3, [1, 1, 1])],
)
def test_subdomains_are_shared_evenly(subdomains, ranks, expected):
    shares = distributed.assign(subdomains, ranks)
    assert [len(one) for one in shares] == expected
    assert [index for one in shares for index in one] == list(range(subdomains))
    with pytest.raises(ValueError, match=f"{subdomains + 1} ranks cannot share {subdomains} subdomains"):
        distributed.assign(subdomains, subdomains + 1)


# ── checkpoints ──


def test_one_process_and_ranks_go_on_from_each_others_checkpoint(data, on_ranks, alone, tmp_path):
    whole, recipe = coherent(), replace(LONGER, optimizer="adam", rate=1e-3)
    expected = alone(whole, data, recipe, metrics={"m": lambda m: 0.5})
    path = tmp_path / "ranks.pt"
    assert on_ranks(2, train, coherent(), data, recipe, path, 3) == [(None, None)] * 2
    assert len(files.load_tensors(path)["history"]) == 2
    other = coherent()
    history = alone(other, data, recipe, metrics={"m": lambda m: 0.5}, checkpoint=path)
    assert_same_state(other, whole, 1e-9)
    assert history["loss"].tolist() == pytest.approx(expected["loss"].tolist(), rel=1e-9)

    path = tmp_path / "alone.pt"
    with pytest.raises(KeyboardInterrupt):
        alone(coherent(), data, recipe, metrics={"m": stop_in(3)}, checkpoint=path)
    for model, history in on_ranks(2, train, coherent(), data, recipe, path):
        assert_same_state(model, whole, 1e-9)
        assert history["loss"].tolist() == pytest.approx(expected["loss"].tolist(), rel=1e-9)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone.pt", "ranks.pt"]


def stop_in(epoch):
    calls = []

    def metric(model):
        calls.append(None)
        if len(calls) == epoch:
            raise KeyboardInterrupt
        return 0.5

    return metric


def test_a_damaged_checkpoint_is_told_by_every_rank(data, on_ranks, tmp_path):
    path = tmp_path / "c.pt"
    on_ranks(2, train, coherent(), data, PLAIN, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(files.DamagedFile, match=r"c\.pt is damaged.*set aside"):
        on_ranks(2, train, coherent(), data, PLAIN, path)
    assert [p.name.partition("-")[0] for p in tmp_path.iterdir()] == ["c.pt.damaged"]


@pytest.mark.slow
def test_a_lost_rank_is_named_by_the_others_and_the_last_epoch_is_kept(data, on_ranks, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path, context = tmp_path / "c.pt", get_context("spawn")
    queue = context.Queue()
    ranks = [
        context.Process(target=told, args=(queue, (r, 2, port), lost, coherent(), data, LONGER, path)) for r in (0, 1)
    ]
    for process in ranks:
        process.start()
    ranks[1].join(300)
    assert ranks[1].exitcode == -signal.SIGKILL
    message = queue.get(timeout=120)
    ranks[0].join(120)
    assert "rank 0 of 2 stops: another rank was lost" in message
    assert len(files.load_tensors(path)["history"]) == 1
    (whole, _), *_ = on_ranks(2, train, coherent(), data, LONGER)
    (resumed, _), *_ = on_ranks(2, train, coherent(), data, LONGER, path)
    assert_same_state(resumed, whole)


def told(queue, *arguments):
    torch.set_num_threads(1)
    try:
        joined(*arguments)
    except RuntimeError as error:
        queue.put(str(error))


def test_outside_torchrun_there_is_one_rank(monkeypatch, tiny):
    monkeypatch.delenv("RANK", raising=False)
    with distributed.process_group() as rank:
        assert (rank, distributed.world_size()) == (0, 1)
        assert distributed.from_first(lambda: "x") == "x"
    model = coherent()
    assert isinstance(model, nn.Module)
    history = distributed.train_coherent(model, tiny, PLAIN, progress=False)
    assert "ranks" not in history
