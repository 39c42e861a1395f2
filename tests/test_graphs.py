"""The step as a CUDA graph: when it is captured, what is never captured, and, where there is a GPU, its numbers."""

import contextlib
import random
import types
import warnings

import numpy as np
import pytest
import torch
from helpers import assert_same_state, local_cnns
from torch import nn

import ddlib
from ddlib import Decomposition, Recipe, fit, train_aggregator
from ddlib._internal.graphs import USUAL, Step
from ddlib._internal.loop import Tables

pytestmark = pytest.mark.filterwarnings("ignore:Synchronization debug mode")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ON_GPU = Recipe(epochs=2, batch_size=16, rate=0.02, precision="fp32", augment=True, device="cuda")


def test_a_step_takes_the_row_that_it_counts():
    tables, numbers = Tables(torch.device("cpu")), torch.arange(6).view(3, 2)
    for epoch in range(2):
        tables.fill(numbers + epoch, numbers[:, 0] > 2)
        places = [table.data_ptr() for table in tables.tables]
        for step in range(3):
            row, flag = tables.take()
            assert row.tolist() == (numbers[step] + epoch).tolist()
            assert flag.item() == (numbers[step, 0] > 2).item()
    assert places == [table.data_ptr() for table in tables.tables]  # a graph reads them there


def notice(mode):
    """As PyTorch says once in each process."""
    if mode == "warn":
        warnings.warn("Synchronization debug mode does not detect all synchronizing operations", stacklevel=1)


class Stream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def recorder(monkeypatch):
    """In place of CUDA: a capture runs the step with `capturing`, a replay is counted."""
    seen = types.SimpleNamespace(capturing=False, captures=0, replays=0, fails=None)

    class Graph:
        def replay(self):
            seen.replays += 1

    @contextlib.contextmanager
    def graph(made, stream, capture_error_mode):
        seen.capturing, seen.captures = True, seen.captures + 1
        try:
            yield
            if seen.fails:
                raise RuntimeError(f"{seen.fails}\nand more")
        finally:
            seen.capturing = False

    generator = types.SimpleNamespace(clone_state=lambda: "state", graphsafe_set_state=lambda state: None)
    fakes = {"CUDAGraph": Graph, "graph": graph, "default_generators": [generator]}
    fakes |= {"Stream": lambda device: Stream(), "current_stream": lambda device: Stream()}
    fakes |= {"stream": lambda stream: contextlib.nullcontext()}
    fakes |= {"get_sync_debug_mode": lambda: 0, "set_sync_debug_mode": notice}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return seen


def repeat(step, times=5):
    for _ in range(times):
        step()


def steps(seen, model, work=lambda: None, obstacle=""):
    """A step that counts how often it was really done."""

    def one():
        if not seen.capturing:
            seen.done += 1
        work()

    seen.done = 0
    return Step(one, model, torch.device("cuda", 0), obstacle)


def test_after_some_steps_as_usual_all_are_replays_of_one_graph(recorder):
    step = steps(recorder, nn.Linear(2, 2))
    for _epoch in range(3):
        step.begin()
        repeat(step)
    assert (recorder.done, recorder.captures, recorder.replays) == (USUAL, 1, 15 - USUAL)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model[0].requires_grad_(False),
        lambda model: setattr(model[1], "p", 0.1),
        lambda model: model[0].eval(),
        lambda model: setattr(model[0].weight, "data", model[0].weight.detach().clone()),
    ],
    ids=["frozen", "dropout", "eval", "moved"],
)
def test_what_was_changed_between_epochs_is_captured_anew(recorder, change):
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    step = steps(recorder, model)
    for epoch in range(3):
        step.begin()
        repeat(step)
        if epoch == 1:
            change(model)
    assert (recorder.done, recorder.captures) == (2 * USUAL, 2)


COUNTS = nn.Linear(2, 2)
COUNTS.steps = 0


def wait():
    warnings.warn("called a synchronizing CUDA operation", RuntimeWarning, stacklevel=1)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("work", "told"),
    [
        (wait, "it waits for the GPU"),
        (lambda: torch.rand(1), "random numbers on the CPU"),
        (lambda: np.random.rand(), "random numbers on the CPU"),  # noqa: NPY002
        (random.random, "random numbers on the CPU"),
        (lambda: setattr(COUNTS, "steps", COUNTS.steps + 1), "attributes or buffers"),
    ],
    ids=["a number is read", "torch", "numpy", "random", "counter"],
)
def test_what_no_graph_can_hold_is_trained_as_usual(recorder, work, told):
    step = steps(recorder, COUNTS, work)
    step.begin()
    with pytest.warns(UserWarning, match=told) as warned:
        repeat(step)
    assert len([w for w in warned if "without a CUDA graph" in str(w.message)]) == 1
    assert (recorder.done, recorder.captures) == (5, 0)


def test_a_capture_that_fails_is_a_step_as_usual(recorder):
    recorder.fails = "this operation is not permitted"
    step = steps(recorder, nn.Linear(2, 2))
    step.begin()
    with pytest.warns(UserWarning, match="Linear is trained without a CUDA graph: this operation is not permitted.$"):
        repeat(step)
    assert (recorder.done, recorder.captures, recorder.replays) == (5, 1, 0)


@pytest.mark.parametrize("how", ["obstacle", "module", "weight", "switched off"])
def test_known_obstacles(recorder, how, monkeypatch):
    model = nn.Linear(2, 2)
    if how == "module":
        model.register_forward_hook(lambda *_: None)
    if how == "weight":
        model.weight.register_hook(lambda grad: grad)
    if how == "switched off":
        monkeypatch.setenv("DDLIB_CUDA_GRAPHS", "0")
    step = steps(recorder, model, obstacle="its optimiser is one's own" if how == "obstacle" else "")
    told = contextlib.nullcontext() if how == "switched off" else pytest.warns(UserWarning, match="optimiser|hooks")
    with told:
        step.begin()
    repeat(step)
    assert (recorder.done, recorder.captures) == (5, 0)


def model_of(kind, data):
    torch.manual_seed(0)
    shape, width = data.image_shape, 8
    dec = Decomposition.grid(shape, (2, 3), 2, coarse=True)
    local = local_cnns("vgg9", dec, channels=3)
    models = {
        "global": lambda: ddlib.backbones.build("vgg9", 3, data.num_classes, width),
        "dropout": lambda: ddlib.backbones.build("mobilenet_v2", 3, data.num_classes, width),
        "local": lambda: local,
        "coherent": lambda: ddlib.CNNDNN(local, ddlib.DenseAggregator(len(dec), data.num_classes)),
    }
    return models[kind]()


@needs_gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("kind", ["global", "dropout", "local", "coherent"])
def test_a_replay_is_the_step(tiny, kind, optimizer, monkeypatch):
    """The same losses and weights as without a graph, through a checkpoint too."""
    recipe = Recipe(**{**vars(ON_GPU), "optimizer": optimizer, "rate": 0.02 if optimizer == "sgd" else 1e-3})
    graphed, usual = model_of(kind, tiny), model_of(kind, tiny)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is captured
        with_graph = fit(graphed, tiny, recipe, progress=False)
    monkeypatch.setenv("DDLIB_CUDA_GRAPHS", "0")
    without = fit(usual, tiny, recipe, progress=False)
    assert with_graph["loss"].tolist() == pytest.approx(without["loss"].tolist(), rel=1e-5)
    assert_same_state(graphed, usual, 1e-3)


@needs_gpu
def test_a_dense_network_and_a_step_that_reads_a_number(tiny):
    model = model_of("coherent", tiny)
    p = torch.softmax(torch.randn(len(tiny.train), len(model.local), tiny.num_classes), -1)
    recipe = Recipe(epochs=2, batch_size=16, optimizer="adam", rate=1e-3, augment=False, device="cuda")
    history = train_aggregator(model, tiny, recipe, probabilities=p, progress=False)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]

    class Reads(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1)) * (1.0 if x.sum().item() else 2.0)

    with pytest.warns(UserWarning, match="waits for the GPU"):
        fit(Reads(tiny.train.images[0].numel(), tiny.num_classes), tiny, ON_GPU, progress=False)
