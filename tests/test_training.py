import copy
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from helpers import apart, assert_other_state, assert_same_state, local_cnns
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import ddlib
from ddlib import CNNDNN, Decomposition, DenseAggregator, Recipe, accuracy, files, predict
from ddlib._internal import devices
from ddlib._internal.checks import print_of
from ddlib._internal.devices import seeded
from ddlib.images import prepare
from ddlib.training import cross_entropy, schedule

QUICK = Recipe(epochs=1, batch_size=16, rate=0.05, augment=False, precision="fp32", device="cpu")
TIMELESS = ["epoch", "loss", "train_accuracy", "rate"]

fit = partial(ddlib.fit, progress=False)
train_aggregator = partial(ddlib.train_aggregator, progress=False)


def vgg(seed=0, width=6, dtype=torch.float32):
    torch.manual_seed(seed)
    return ddlib.backbones.build("vgg9", 3, 4, width).to(dtype)


def two_level(seed=0, dtype=torch.float32):
    local = local_cnns("vgg9", Decomposition.grid((12, 12), 2), channels=3, width=12, seed=seed, dtype=dtype)
    return CNNDNN(local, DenseAggregator(4, 4, hidden=(16, 16)).to(dtype))


# ── recipes ──


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"epochs": 0}, r"epochs.*≥ 1.*got 0"),
        ({"epochs": 1.5}, r"epochs.*1\.5"),
        ({"epochs": True}, r"epochs.*True"),
        ({"batch_size": 1}, r"batch_size.*≥ 2.*got 1"),
        ({"optimizer": "sdg"}, r"optimizer 'sdg'.*Did you mean 'sgd'"),
        ({"rate": 0}, r"rate.*above 0.*got 0"),
        ({"rate": math.nan}, r"rate.*nan"),
        ({"schedule": "onecycle"}, r"schedule 'onecycle'.*Did you mean 'one-cycle'"),
        ({"momentum": 1.5}, r"momentum.*at most 1.*got 1\.5"),
        ({"weight_decay": -1}, r"weight_decay.*-1"),
        ({"augment": 1}, r"augment.*1"),
        ({"precision": "fp16"}, r"precision 'fp16'.*Did you mean"),
        ({"device": "cude"}, r"device 'cude'.*Did you mean 'cuda'"),
        ({"seed": 2**31}, r"seed.*2147483648"),
    ],
)
def test_a_bad_recipe_is_refused_by_its_value(wrong, told):
    with pytest.raises(ValueError, match=told):
        Recipe(**wrong)


def test_a_batch_larger_than_the_data_is_refused(tiny):
    with pytest.raises(ValueError, match="batch_size 65 is larger than the data: 64 images"):
        fit(vgg(), tiny, replace(QUICK, batch_size=65))
    fit(vgg(), tiny, replace(QUICK, batch_size=64))


def test_a_device_that_is_not_there_is_refused(tiny):
    assert devices.choose_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="device 'cuda' is not there; present: cpu"):
        fit(vgg(), tiny, replace(QUICK, device="cuda"))


def test_bf16_is_refused_where_it_cannot_be(monkeypatch):
    with pytest.raises(ValueError, match=r"'bf16' is not supported on device 'mps'"):
        devices.choose_precision("bf16", torch.device("mps"))
    assert devices.choose_precision("auto", torch.device("mps")) == "fp32"
    for able, chosen in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"avx512_bf16": able})
        assert devices.choose_precision("auto", torch.device("cpu")) == chosen


FAULTS = """
import resource
import torch
from ddlib._internal.devices import keep_memory
keep_memory()
def fill(times):
    for _ in range(times):
        torch.ones(2**24)  # 64 MB
fill(12)  # until the heap has grown
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill(4)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
@pytest.mark.parametrize("own", [{}, {"MALLOC_ARENA_MAX": "2"}], ids=["as it comes", "set up by the user"])
def test_large_blocks_stay_with_the_process_unless_the_allocator_is_set_up(own):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | own
    done = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    pages = 4 * 2**26 // os.sysconf("SC_PAGE_SIZE")
    assert (int(done.stdout) < pages / 20) == (not own)  # else each is mapped, and cleared page by page


# ── one training ──


def test_history_and_metrics(tiny):
    seen = []

    def metric(model):
        seen.append(copy.deepcopy(model.state_dict()))
        return len(seen)

    net = vgg()
    history = fit(net, tiny, replace(QUICK, epochs=3), metrics={"count": metric})
    assert list(history) == ["epoch", "loss", "train_accuracy", "rate", "seconds", "count"]
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["count"].tolist() == [1, 2, 3]
    assert history["train_accuracy"].between(0, 1).all()
    assert (history["seconds"] > 0).all()
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in seen[-1].items())  # after the epoch


@pytest.mark.parametrize(
    ("answer", "epochs"),
    [(True, 1), (np.True_, 1), (torch.tensor(True), 1), (np.False_, 2), (1, 2), ("", 2), (np.ones(2, bool), 2)],
)
def test_what_is_true_stops_a_training_and_what_only_counts_as_true_does_not(tiny, answer, epochs):
    assert len(fit(vgg(), tiny, replace(QUICK, epochs=2), after_epoch=lambda row: answer)) == epochs


def test_same_seed_same_weights(tiny):
    first, second, third, fourth = vgg(), vgg(), vgg(), vgg()
    recipe = replace(QUICK, augment=True, seed=4)
    a = fit(first, tiny, recipe)
    torch.manual_seed(99)  # the global random state is of no concern
    b = fit(second.eval(), tiny.train, recipe)  # nor is the mode
    fit(third, tiny, replace(recipe, seed=5))
    fit(fourth, tiny, replace(recipe, augment=False))
    assert_same_state(first, second)
    assert a[TIMELESS].equals(b[TIMELESS])
    assert_other_state(first, third)
    assert_other_state(first, fourth)


def test_dropout_depends_on_the_seed_alone(tiny):
    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 144, 4))

    nets = [make() for _ in range(3)]
    for number, (net, seed) in enumerate(zip(nets, (0, 0, 1), strict=True)):
        torch.manual_seed(number)
        fit(net, tiny, replace(QUICK, seed=seed))
        drawn = torch.rand(3)
        torch.manual_seed(number)
        assert torch.equal(torch.rand(3), drawn)  # the global random state is left alone
    assert_same_state(nets[0], nets[1])
    assert_other_state(nets[0], nets[2])


def test_one_step_by_hand(tiny):
    """The whole set as one batch: then the order of the images does not matter."""
    recipe = replace(QUICK, batch_size=64, momentum=0.0, weight_decay=0.1, schedule="constant")
    net, other = vgg(dtype=torch.float64), vgg(dtype=torch.float64)
    history = fit(net, tiny, recipe)
    x = prepare(tiny.train.images, tiny.train, torch.float64)
    loss = F.cross_entropy(other(x), tiny.train.labels)
    loss.backward()
    with torch.no_grad():
        for p in other.parameters():
            p -= recipe.rate * (p.grad + (0.1 * p if p.ndim > 1 else 0))
    assert_same_state(net, other, 1e-10)
    assert history["loss"].item() == pytest.approx(loss.item())


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_ten_steps_by_hand(tiny, optimizer):
    """A plain loop of PyTorch, with the order and the rates that the step reads from its tables."""
    recipe = Recipe(epochs=5, batch_size=32, optimizer=optimizer, rate=0.01, augment=False, device="cpu")
    net, other = vgg(dtype=torch.float64), vgg(dtype=torch.float64)
    history = fit(net, tiny, recipe)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    momentum = {"momentum": 0.9, "nesterov": True} if optimizer == "sgd" else {}
    weights = [[p for p in other.parameters() if (p.ndim > 1) is decayed] for decayed in (True, False)]
    groups = [{"params": weights[0], "weight_decay": 5e-4}, {"params": weights[1], "weight_decay": 0.0}]
    plain = kind(groups, 0.01, **momentum)
    x = prepare(tiny.train.images, tiny.train, torch.float64)
    for epoch in range(5):
        order, losses = torch.randperm(len(x), generator=seeded(0, epoch)), []
        for step, chosen in enumerate(order.split(32)[: len(x) // 32]):
            for group in plain.param_groups:
                group["lr"] = 0.01 * schedule("one-cycle", (epoch + step / (len(x) // 32)) / 5)
            loss = F.cross_entropy(other(x[chosen]), tiny.train.labels[chosen])
            plain.zero_grad()
            loss.backward()
            plain.step()
            losses.append(loss.item())
        assert history["loss"][epoch] == pytest.approx(sum(losses) / len(losses), rel=1e-8)
    assert_same_state(net, other, 1e-8)


def test_every_image_is_seen_once_an_epoch(tiny):
    """The mean loss of one epoch at a rate of nearly nothing is the loss of the set."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 4)).double()
    x = prepare(tiny.train.images, tiny.train, torch.float64)
    expected = F.cross_entropy(net(x), tiny.train.labels).item()
    right = (net(x).argmax(1) == tiny.train.labels).double().mean().item()
    history = fit(net, tiny, replace(QUICK, epochs=2, rate=1e-12))
    assert history["loss"].tolist() == pytest.approx([expected] * 2)
    assert history["train_accuracy"].tolist() == pytest.approx([right] * 2)


@pytest.mark.parametrize("augment", [True, False])
def test_images_are_augmented_anew_each_epoch(tiny, augment):
    seen, net = [], nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 4))
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    fit(net, tiny, replace(QUICK, epochs=2, batch_size=64, augment=augment))
    first, second = (sorted(x.double().flatten(1).sum(1).tolist()) for x in seen)
    assert (first == pytest.approx(second)) != augment
    assert not torch.equal(*seen)  # in another order


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.03), ("adam", 3e-3), ("adamw", 3e-3)])
def test_it_learns(tiny, optimizer, rate):
    net = vgg(width=8)
    fit(net, tiny, replace(QUICK, epochs=8, batch_size=8, optimizer=optimizer, rate=rate))
    assert accuracy(predict(net, tiny.test), tiny.test.labels) > 0.6  # chance: 0.25


def test_it_learns_on_volumes(tiny3d):
    local = local_cnns("cnn3d", Decomposition.grid((8, 8, 4), (2, 2, 1)), width=24)
    history = fit(local, tiny3d, replace(QUICK, epochs=12, batch_size=8, optimizer="adam", rate=3e-3))
    assert history["loss"].iloc[-1] < 0.5 * history["loss"].iloc[0]
    assert min(accuracy(predict(local, tiny3d.test), tiny3d.test.labels)) > 0.5


# ── schedules ──


@pytest.mark.parametrize(("schedule", "top"), [("one-cycle", 4), ("cosine", 0), ("constant", None)])
def test_shape_of_the_schedule(tiny, schedule, top):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 4))
    rates = fit(net, tiny, replace(QUICK, epochs=20, schedule=schedule, rate=0.3))["rate"].to_numpy()
    if schedule == "constant":
        assert (rates == 0.3).all()
        return
    assert (rates > 0).all()
    assert 0.25 < rates.max() <= 0.3
    assert (np.diff(rates[:top]) > 0).all()
    assert (np.diff(rates[max(top, 1) :]) < 0).all()
    assert rates[-1] < 0.02 * 0.3


# ── the loss ──


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(2, 6), st.integers(0, 999))
def test_the_loss_is_a_mean_over_images_and_a_sum_over_networks(batch, networks, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((batch, networks, classes), generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, classes, (batch,), generator=generator)
    parts = [F.cross_entropy(logits[:, n], labels) for n in range(networks)]
    loss = cross_entropy(logits, labels)
    assert loss.item() == pytest.approx(sum(parts).item(), rel=1e-12)
    (mine,) = torch.autograd.grad(loss, logits)
    (theirs,) = torch.autograd.grad(sum(parts), logits)
    assert torch.allclose(mine, theirs, rtol=1e-12)
    assert cross_entropy(logits[:, 0], labels).item() == pytest.approx(parts[0].item(), rel=1e-12)
    assert cross_entropy(logits.bfloat16(), labels).dtype == torch.float32  # in full precision


# ── checkpoints ──


class Interrupted(Exception):
    pass


def stop_in_epoch(number):
    calls = []

    def metric(model):
        calls.append(None)
        if len(calls) == number:
            raise Interrupted
        return 0.5

    return metric


class Hostile:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


RECIPES = {
    "sgd": replace(QUICK, epochs=4, augment=True),
    "adam": replace(QUICK, epochs=4, augment=True, optimizer="adam", rate=1e-3, precision="bf16"),
}


def train_dense(model, data, recipe, **options):
    return train_aggregator(model, data, replace(recipe, augment=False), **options)


GOES_ON = {
    "local, sgd": (lambda: two_level().local, fit, "sgd"),
    "coherent, adam in bf16": (two_level, fit, "adam"),
    "dense network": (two_level, train_dense, "adam"),
}


@pytest.mark.parametrize(("make", "train", "recipe"), GOES_ON.values(), ids=GOES_ON)
def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(tiny, tmp_path, make, train, recipe):
    path, recipe = tmp_path / "deep" / "model.pt", RECIPES[recipe]
    whole, resumed = make(), make()
    history = train(whole, tiny, recipe, metrics={"m": lambda m: 0.5})
    with pytest.raises(Interrupted):
        train(make(), tiny, recipe, metrics={"m": stop_in_epoch(3)}, checkpoint=path)
    assert [p.name for p in path.parent.iterdir()] == ["model.pt"]
    told = train(resumed, tiny, recipe, metrics={"m": lambda m: 0.5}, checkpoint=path)
    assert_same_state(resumed, whole)
    assert told[[*TIMELESS, "m"]].equals(history[[*TIMELESS, "m"]])
    done = make()
    again = train(done, tiny, recipe, metrics={"m": stop_in_epoch(1)}, checkpoint=path)  # nothing is left to do
    assert_same_state(done, whole)
    assert again.equals(told)


def cut(parts=(2, 2), seed=0):
    return local_cnns("vgg9", Decomposition.grid((12, 12), parts), channels=3, seed=seed)


def renamed() -> nn.Module:
    """The same windows by other names."""
    windows = Decomposition.grid((12, 12), (2, 2))
    return local_cnns("vgg9", replace(windows, names=("a", "b", "c", "d")), channels=3)


def frozen() -> nn.Module:
    net = cut()
    net.networks[0].features.requires_grad_(False)
    return net


def other_layers() -> nn.Module:
    net = cut()
    net.networks[0].features[1].eps = 0.5
    return net


def flat(share):
    return lambda t: share


OTHERS = {  # another network, other images, another recipe or loss → what is told
    "windows": ({"model": lambda: cut((4, 1))}, "of other images, labels or windows"),
    "names": ({"model": renamed}, "of other names of the windows"),
    "weights": ({"model": lambda: cut(seed=1)}, "of other initial weights"),
    "frozen": ({"model": frozen}, "of other layers, or frozen weights"),
    "layers": ({"model": other_layers}, "of other layers, or frozen weights"),
    "images": ({"data": lambda s: replace(s, images=s.images.flip(0))}, "of other images"),
    "labels": ({"data": lambda s: replace(s, labels=s.labels.flip(0))}, "of other images, labels"),
    "shapes": (
        {"data": lambda s: replace(s, images=s.images.view(*s.images.shape[:2], 9, 16))},
        "of other shapes of images",
    ),
    "mirrors": ({"data": lambda s: replace(s, flip_axes=())}, "of other images"),
    "rate": ({"recipe": {"rate": 0.25}}, "its recipe has rate 0.05, not 0.25"),
    "schedule": ({"recipe": {"schedule": flat(0.01)}}, "its recipe has schedule '.*lambda.*', not '.*lambda.*'"),
    "loss": ({"loss": nn.CrossEntropyLoss(label_smoothing=0.5)}, "its recipe has loss None, not '.*CrossEntropyLoss"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_training_is_refused(tiny, tmp_path, other):
    change, told = OTHERS[other]
    path, recipe = tmp_path / "c.pt", replace(QUICK, schedule=flat(1.0))
    fit(cut(), tiny.train, recipe, checkpoint=path)
    before = path.read_bytes()
    net, train = change.get("model", cut)(), change.get("data", lambda split: split)(tiny.train)
    start = copy.deepcopy(net)
    with pytest.raises(ValueError, match=rf"c\.pt belongs to another training: {told}"):
        fit(net, train, replace(recipe, **change.get("recipe", {})), loss=change.get("loss"), checkpoint=path)
    assert path.read_bytes() == before
    assert_same_state(net, start)


class Smooth:
    def __init__(self, share):
        self.share, self.own = share, self

    def loss(self, z, y):
        return F.cross_entropy(z, y, label_smoothing=self.share)


def with_default(share):
    def loss(z, y, *, share=share):
        return F.cross_entropy(z, y, label_smoothing=share)

    return loss


MADE = {  # a loss that depends on a number
    "closure": lambda share: lambda z, y: F.cross_entropy(z, y, label_smoothing=share),
    "closure in a closure": lambda share: lambda z, y: flat(share)(z) * F.cross_entropy(z, y),
    "default": with_default,
    "partial": lambda share: partial(F.cross_entropy, label_smoothing=share),
    "module": lambda share: nn.CrossEntropyLoss(label_smoothing=share),
    "weights": lambda share: nn.CrossEntropyLoss(torch.full((4,), share)),
    "method of an object that holds itself": lambda share: Smooth(share).loss,
    "inner code": lambda share: (lambda z, y: (lambda: z + 1)()) if share < 0.5 else (lambda z, y: (lambda: z + 2)()),
    "names in it": lambda share: (lambda z, y: z.mean()) if share < 0.5 else (lambda z, y: z.sum()),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_losses_that_do_otherwise_are_told_apart(make):
    first, same, other = (print_of(make(share)) for share in (0.1, 0.1, 0.9))
    assert first == same != other


def test_every_process_tells_a_loss_by_the_same_print():
    code = """
from functools import partial
from ddlib._internal.checks import print_of
def loss(z, y, known={"a", "b", "c"}): return y in {"d", "e", "f"}
class Loss: pass
print(print_of(partial(loss, known={"g", "h", Loss}, one=object())))
"""
    runs = [
        subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True)
        for seed in "12"
    ]
    assert runs[0].stdout == runs[1].stdout != b""


def test_a_loss_that_weighs_the_model_goes_on_where_it_was(tiny, tmp_path):
    net, path = cut(), tmp_path / "c.pt"
    own = lambda z, y: F.cross_entropy(z, y) + 1e-4 * sum(p.square().sum() for p in net.parameters())  # noqa: E731
    first = fit(net, tiny, QUICK, loss=own, checkpoint=path)
    assert fit(net, tiny, QUICK, loss=own, checkpoint=path).equals(first)


def test_a_damaged_checkpoint_is_named_and_set_aside(tiny, tmp_path):
    path, net = tmp_path / "model.pt", vgg(seed=1)
    fit(vgg(), tiny, QUICK, checkpoint=path)
    harmed = path.read_bytes()[:-100]
    path.write_bytes(harmed)
    with pytest.raises(files.DamagedFile, match=f"{path} is damaged.*set aside as .*damaged-"):
        fit(net, tiny, QUICK, checkpoint=path)
    assert_same_state(net, vgg(seed=1))
    (away,) = tmp_path.glob("model.pt.damaged-*")
    assert away.read_bytes() == harmed
    fit(net, tiny, QUICK, checkpoint=path)  # the next one starts anew
    expected = vgg(seed=1)
    fit(expected, tiny, QUICK)
    assert_same_state(net, expected)


def test_a_folder_is_no_checkpoint_and_stays(tiny, tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match=r"checkpoint must name a file, .*runs is a folder"):
        fit(vgg(), tiny, QUICK, checkpoint=tmp_path / "runs")
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_a_checkpoint_may_lie_in_the_home_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fit(vgg(), tiny, QUICK, checkpoint="~/deeper/m.pt")
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("m.pt")] == ["deeper/m.pt"]


def test_a_hostile_checkpoint_does_nothing(tiny, tmp_path):
    proof, path = tmp_path / "proof", tmp_path / "model.pt"
    files.save_tensors(path, {"recipe": {}, "history": [], "model": Hostile(f"touch {proof}")})
    with pytest.raises(files.DamagedFile, match=r"model\.pt is damaged"):
        fit(vgg(), tiny, QUICK, checkpoint=path)
    assert not proof.exists()


def test_a_checkpoint_that_cannot_be_written_is_told_before_training(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    net = vgg()
    with pytest.raises(OSError, match="cannot be written"):
        fit(net, tiny, QUICK, checkpoint=tmp_path / "file" / "model.pt")
    assert_same_state(net, vgg())


# ── prediction ──


def test_prediction_by_hand(tiny):
    local = two_level(dtype=torch.float64).local
    fit(local, tiny, QUICK)
    found = predict(local, tiny.test, batch_size=7)
    assert found.shape == (32, 4, 4)
    assert found.dtype == torch.float64
    assert not found.requires_grad
    x = prepare(tiny.test.images, tiny.test, torch.float64)
    for i, piece in enumerate(local.decomposition.cut(x)):
        with torch.no_grad():
            expected = local.subnet(i).eval()(piece).softmax(1)
        assert apart(found[:, i], expected) < 1e-10
        share = (expected.argmax(1) == tiny.test.labels).double().mean().item()
        assert accuracy(found, tiny.test.labels)[i] == accuracy(expected, tiny.test.labels) == pytest.approx(share)


def test_prediction_leaves_each_part_in_its_mode(tiny):
    model = two_level().train()
    model.local.eval()
    before = copy.deepcopy(model)
    predict(model, tiny.test)
    assert model.head.training
    assert not model.local.training
    assert_same_state(model, before)
    net = nn.Sequential(nn.Flatten(), nn.Linear(5, 4))
    with pytest.raises(RuntimeError):
        predict(net, tiny.test)
    assert net.training  # after an error too


def test_prediction_in_bf16_gives_probabilities_in_full_precision(tiny):
    net = vgg()
    fit(net, tiny, QUICK)
    rounded, exact = predict(net, tiny.test, precision="bf16"), predict(net, tiny.test, precision="fp32")
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded.sum(1), torch.ones(32), atol=1e-6)
    assert 0 < apart(rounded, exact) < 0.1


def test_a_refused_training_leaves_what_is_predicted(tiny, tmp_path):
    """How images alone are normalised is that of the images that were trained on."""
    local, other = cut(), replace(tiny.train, mean=tiny.train.mean + 0.3)
    ddlib.train_local(local, tiny, QUICK, progress=False)
    before = predict(local, tiny.test.images)
    fit(cut(), tiny, QUICK, checkpoint=tmp_path / "c.pt")
    large = replace(QUICK, batch_size=65)
    for refused in (
        lambda: fit(local, other, large),
        lambda: fit(local, other, QUICK, metrics={"loss": accuracy}),
        lambda: fit(local, other, QUICK, checkpoint=tmp_path / "c.pt"),
        *(lambda engine=e: ddlib.train_local(local, other, large, engine=engine) for e in ("fused", "loop", "streams")),
    ):
        with pytest.raises(ValueError, match=r"larger than the data|metric cannot be called|belongs to another"):
            refused()
        assert torch.equal(predict(local, tiny.test.images), before)
    for engine in ("fused", "loop", "streams"):
        ddlib.train_local(local, other, replace(QUICK, epochs=1), engine=engine, progress=False)
        assert torch.equal(predict(local, other.images), predict(local, other))
        ddlib.train_local(local, tiny, replace(QUICK, epochs=1), engine=engine, progress=False)


# ── the two-step CNN-DNN and transfer ──


def test_the_second_step_trains_the_dense_network_alone(tiny):
    model, before = two_level(), two_level()
    fit(model.local, tiny, replace(QUICK, epochs=2))
    trained = copy.deepcopy(model.local)
    recipe = replace(ddlib.RECIPES["dense network"], batch_size=16, device="cpu")
    history = train_aggregator(model, tiny, recipe)
    assert_same_state(model.local, trained)  # batch-norm statistics included
    assert_other_state(model.head, before.head)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert all(p.requires_grad for p in model.parameters())
    reference = two_level()
    reference.local.load_state_dict(trained.state_dict())
    train_aggregator(reference, tiny.train, recipe, probabilities=predict(trained, tiny.train))
    assert_same_state(reference.head, model.head)


def test_the_second_step_sees_the_images_as_they_are(tiny):
    """Its inputs are the local CNNs' probabilities in eval mode, whatever the recipe says of augmentation."""
    model, seen = two_level(), []
    fit(model.local, tiny, QUICK)
    expected = predict(model.local, tiny.train)
    model.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    train_aggregator(model, tiny, replace(ddlib.RECIPES["dense network"], epochs=1, batch_size=64, augment=True))
    order = lambda p: p.flatten(1)[p.flatten(1)[:, 0].argsort()]  # noqa: E731
    assert torch.equal(order(seen[0]), order(expected))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_in_double_or_half_precision_stays_so(tiny, dtype):
    model, recipe = two_level(dtype=dtype), replace(QUICK, rate=0.01, precision="auto", augment=True)
    fit(model.local, tiny, recipe)
    train_aggregator(model, tiny, replace(QUICK, epochs=1))
    assert fit(model, tiny, recipe)["loss"].notna().all()
    assert {p.dtype for p in model.parameters()} == {dtype}
    p = predict(model, tiny.test)
    assert p.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
    assert torch.allclose(p.sum(1), torch.ones(len(p), dtype=p.dtype), atol=1e-5)


# ── real habits ──


def test_nothing_to_train_is_told(tiny):
    net = vgg().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train: all weights of the VGG9 are frozen"):
        fit(net, tiny, QUICK)


def test_another_default_device_changes_nothing(tiny):
    """What the library makes is put where the model is, whatever a user's default is."""
    usual, other = vgg(), vgg()
    recipe = replace(QUICK, epochs=1, augment=True, device="cpu")
    fit(usual, tiny, recipe)
    torch.set_default_device("meta")
    try:
        fit(other, tiny, recipe)
        p = predict(other, tiny.test)
    finally:
        torch.set_default_device(None)
    assert p.device.type == "cpu"
    assert_same_state(other, usual)


def test_a_batch_that_does_not_fit_is_told_in_a_sentence(tiny):
    class Full(torch.nn.Conv2d):
        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    network = torch.nn.Sequential(Full(3, 4, 3))
    with pytest.raises(RuntimeError, match=r"batch_size 16 does not fit into the memory of cpu: take a smaller one"):
        ddlib.fit(network, tiny, ddlib.Recipe(batch_size=16, device="cpu"), progress=False)
