"""Fused, one by one, in other processes: the same mathematics, so the same weights."""

import pickle
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch
from helpers import apart, assert_other_state, assert_same_state, local_cnns, small_net
from torch import nn

import ddlib
from ddlib import Decomposition, Recipe, process_pool, train_local
from ddlib._internal.devices import autocast
from ddlib.parallel.executors import train_part

PLAIN = Recipe(
    epochs=1, batch_size=16, rate=0.02, momentum=0.0, weight_decay=5e-4, augment=False, precision="fp32", device="cpu"
)
LONGER = replace(PLAIN, epochs=2, momentum=0.9)
DEC = Decomposition.grid((12, 12), 2)


def cnns(backbone="vgg9", dec=DEC, **options) -> ddlib.LocalCNNs:
    return local_cnns(backbone, dec, channels=3, **options)


class Here(Executor):
    """Runs a task at once, in this process; the last submitted is done first."""

    def __init__(self):
        self.tasks = []

    def submit(self, task, *arguments):
        self.tasks.append((task, arguments))
        future = Future()
        future.set_result(task(*arguments))
        return future


def trained(local, data, recipe, engine, **options):
    history = train_local(local, data, recipe, engine=engine, progress=False, **options)
    return local, history


@pytest.mark.parametrize(
    ("recipe", "dtype", "tolerance"),
    [
        (replace(LONGER, augment=True, seed=3), torch.float64, 1e-9),
        (PLAIN, torch.float32, 2e-3),
    ],
    ids=["momentum and augmentation, f64", "plain, f32"],
)
def test_fused_is_one_by_one(tiny, recipe, dtype, tolerance):
    """On windows of two shapes, and the coarse one."""
    dec = Decomposition.grid((12, 12), (2, 3), 2, coarse=True)
    make = lambda: local_cnns("vgg9", dec, channels=3, dtype=dtype)  # noqa: E731
    fused, history = trained(make(), tiny, recipe, "fused")
    loop, apart_history = trained(make(), tiny, recipe, "loop")
    assert list(apart_history) == [*history, "seconds_longest"]
    streams, _ = trained(make(), tiny, recipe, "streams")
    assert_same_state(fused, loop, tolerance)
    assert_same_state(streams, loop, tolerance)
    assert_other_state(fused, make())
    assert all(p.dtype == dtype for p in loop.parameters())
    for column in ("loss", "train_accuracy", "rate"):
        assert history[column].tolist() == pytest.approx(apart_history[column].tolist(), rel=tolerance)


def test_fused_is_one_by_one_on_volumes(tiny3d):
    dec = Decomposition.grid((8, 8, 4), (3, 2, 1), (1, 0, 0))
    make = lambda: local_cnns("cnn3d", dec, dtype=torch.float64)  # noqa: E731
    recipe = replace(PLAIN, augment=True)
    assert_same_state(trained(make(), tiny3d, recipe, "fused")[0], trained(make(), tiny3d, recipe, "loop")[0], 1e-9)


def test_one_window_is_the_global_cnn(tiny):
    """With one subdomain the local CNN is the global CNN, in every engine."""
    dec = Decomposition.grid((12, 12), 1)
    torch.manual_seed(0)
    net = ddlib.backbones.build("vgg9", 3, 4, 8).double()
    ddlib.fit(net, tiny, PLAIN, progress=False)
    for engine in ("auto", "loop"):
        local, _ = trained(local_cnns("vgg9", dec, channels=3, dtype=torch.float64), tiny, PLAIN, engine)
        assert_same_state(local.subnet(0), net, 1e-9)


def test_a_backbone_of_ones_own(tiny):
    dec = Decomposition.grid((12, 12), (2, 3), 2)
    make = lambda: local_cnns(small_net, dec, channels=3, dtype=torch.float64)  # noqa: E731
    auto, history = trained(make(), tiny, LONGER, "auto")
    loop, _ = trained(make(), tiny, LONGER, "loop")
    fused, _ = trained(make(), tiny, LONGER, "fused")
    assert "seconds_longest" in history  # auto is the loop
    assert_same_state(auto, loop)
    assert_same_state(fused, loop, 1e-9)
    assert_other_state(auto, make())
    assert_other_state(auto.subnet(0), auto.subnet(1))


@pytest.fixture(scope="module")
def pool():
    with process_pool(1) as executor:
        yield executor


@pytest.mark.parametrize("by_name", [True, False])
def test_other_processes_give_the_weights_of_the_loop_bit_for_bit(pool, one_thread, by_name):
    data = ddlib.load_dataset("digits")
    make = lambda: local_cnns("vgg9" if by_name else small_net, Decomposition.grid((32, 32), 2), classes=10, width=4)  # noqa: E731
    recipe = replace(PLAIN, batch_size=700, augment=True, precision="fp32" if by_name else "auto")
    here, history = trained(make(), data, recipe, "loop")
    there, told = trained(make(), data if by_name else data.train, recipe, pool)
    assert_same_state(there, here)
    assert_other_state(here, make())
    assert list(told) == list(history)
    assert told["loss"].tolist() == pytest.approx(history["loss"].tolist(), rel=1e-12)


def test_an_executor_gets_plain_tasks(tiny):
    """A top-level function, a part, the data by name where they have one, the recipe.

    Where the caller has others than lie behind the name, labels changed in place, say, these are sent.
    """
    here, data = Here(), ddlib.load_dataset("digits")
    local = local_cnns("vgg9", Decomposition.grid((32, 32), (1, 2)), classes=10, width=2)
    trained(local, data, replace(PLAIN, batch_size=512), here)
    task, (part, images, recipe, loss, checkpoint, _) = here.tasks[0]
    assert task is train_part
    assert len(part) == 1
    source, digest = pickle.loads(images)
    assert source().name == "digits"
    assert digest == data.identity
    assert (recipe.batch_size, loss, checkpoint) == (512, None, None)
    data.train.labels.copy_(data.train.labels.flip(0))
    trained(local, data, replace(PLAIN, batch_size=512), here)
    assert here.tasks[-1][1][1] is data.train


class Strangers(Executor):
    """Workers without the package, as those of Dask tell it."""

    def submit(self, *_):
        future = Future()
        future.set_exception(ModuleNotFoundError("No module named 'ddlib'"))
        return future


def test_workers_that_cannot_import_the_package_are_told_in_a_sentence(tiny):
    local = cnns()
    with pytest.raises(RuntimeError, match="a worker of the executor died, or cannot import ddlib"):
        trained(local, tiny, PLAIN, Strangers())


def test_a_task_may_run_twice(tiny):
    class Twice(Here):
        def submit(self, task, *arguments):
            super().submit(task, *arguments)
            return super().submit(task, *arguments)

    assert_same_state(trained(cnns(), tiny, PLAIN, Twice())[0], trained(cnns(), tiny, PLAIN, Here())[0])


def test_a_failed_task_is_raised(tiny):
    with pytest.raises(ValueError, match="batch_size 65 is larger"):
        trained(cnns(), tiny, replace(PLAIN, batch_size=65), Here())


@pytest.mark.parametrize("engine", ["fused", "loop", "executor"])
def test_training_goes_on_from_checkpoints(tiny, tmp_path, engine):
    where = Here() if engine == "executor" else engine
    first, _ = trained(cnns(), tiny, LONGER, where, checkpoint=tmp_path / "local.pt")
    names = {"local.pt"} if engine == "fused" else {f"local.pt.{i}" for i in range(4)}
    assert {path.name for path in tmp_path.iterdir()} == names
    second, history = trained(cnns(), tiny, LONGER, where, checkpoint=tmp_path / "local.pt")
    assert_same_state(second, first)
    assert len(history) == 2


@pytest.mark.parametrize(("engine", "told"), [("fussed", r"'fussed'.*Did you mean 'fused'"), (None, r"None")])
def test_an_unknown_engine_is_refused(tiny, engine, told):
    with pytest.raises(ValueError, match=told):
        trained(cnns(), tiny, PLAIN, engine)


def test_a_pool_needs_workers_and_threads():
    for arguments, told in (((1, 0), "threads"), ((1.5,), "workers")):
        with pytest.raises(ValueError, match=told):
            process_pool(*arguments)


def test_bf16_is_near_fp32(tiny):
    start = cnns()
    x = ddlib.images.prepare(tiny.test.images, tiny.test)
    start.eval()
    with torch.no_grad():
        exact = start(x)
        with autocast(torch.device("cpu"), "bf16", torch.float32):
            rounded = start(x)
    assert 0 < apart(rounded, exact) < 0.05
    history = trained(start, tiny, replace(PLAIN, precision="bf16"), "fused")[1]
    other = trained(cnns(), tiny, PLAIN, "fused")[1]
    assert history["loss"].tolist() == pytest.approx(other["loss"].tolist(), rel=0.02)
    assert all(p.dtype == torch.float32 for p in start.parameters())


def test_where_memory_is_short_auto_is_the_loop_and_says_so(tiny, monkeypatch):
    six = Decomposition.grid((12, 12), (2, 3), 1)
    loop, _ = trained(cnns(dec=six), tiny, PLAIN, "loop")
    monkeypatch.setattr(ddlib.parallel.executors, "memory_free", lambda device: 2**20)
    with pytest.warns(UserWarning, match="6 local CNNs side by side need about .* GiB.*engine='loop' is taken"):
        auto, _ = trained(cnns(dec=six), tiny, PLAIN, "auto")
    assert_same_state(auto, loop)


# ── executors of the user's own ──


def dropping(in_channels, num_classes, width, dims):
    return nn.Sequential(nn.Dropout(0.3), small_net(in_channels, num_classes, width, dims))


def test_threads_give_the_weights_of_the_loop_and_leave_the_random_state_alone(tiny, one_thread):
    recipe = replace(PLAIN, epochs=2, augment=True)
    loop, _ = trained(cnns(dropping), tiny, recipe, "loop")
    local, state = cnns(dropping), torch.random.get_rng_state()
    with ThreadPoolExecutor(4) as threads:
        trained(local, tiny, recipe, threads)
    assert_same_state(local, loop)
    assert torch.equal(torch.random.get_rng_state(), state)


def threads_of_a_task() -> int:
    return torch.get_num_threads()


@pytest.mark.slow
def test_a_plain_pool_of_processes_gives_the_weights_of_the_loop(tiny, one_thread, monkeypatch):
    """It does not choose a number of threads: a task takes one, and gives them back."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    loop, _ = trained(cnns(dropping), tiny, PLAIN, "loop")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as plain:
        before = plain.submit(threads_of_a_task).result()
        local, _ = trained(cnns(dropping), tiny, PLAIN, plain)
        assert plain.submit(threads_of_a_task).result() == before
    assert_same_state(local, loop)


def test_a_chosen_number_of_threads_is_kept(tiny, monkeypatch):
    seen = []
    spied = lambda *a, **o: (seen.append(torch.get_num_threads()), ddlib.fit(*a, **o))[1]  # noqa: E731
    monkeypatch.setattr(ddlib.parallel.executors, "fit", spied)
    part = local_cnns("vgg9", Decomposition.grid((12, 12), 1), channels=3)
    before = torch.get_num_threads()
    try:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        cores = ddlib.parallel.executors.CORES
        for threads, expected in ((cores, 1), (7, 7), (cores, cores)):
            torch.set_num_threads(threads)
            train_part(part, tiny.train, PLAIN, None, None, "another process")
            assert seen.pop() == expected
            assert torch.get_num_threads() == threads
            if threads == 7:
                monkeypatch.setenv("OMP_NUM_THREADS", "3")  # chosen, by whomever
    finally:
        torch.set_num_threads(before)


def test_training_switches_gradients_on(tiny):
    expected, _ = trained(cnns(), tiny, PLAIN, "fused")
    local = cnns()
    with torch.inference_mode():
        trained(local, tiny, PLAIN, "fused")
    assert_same_state(local, expected)
