import copy
import math
import os
import pickle
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
from ddlib.images import prepare
from ddlib.training import cross_entropy

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
        ({"epochs": -2}, r"epochs.*-2"),
        ({"epochs": 1.5}, r"epochs.*1\.5"),
        ({"epochs": True}, r"epochs.*True"),
        ({"epochs": "3"}, r"epochs.*'3'"),
        ({"batch_size": 1}, r"batch_size.*≥ 2.*got 1"),
        ({"optimizer": "sdg"}, r"optimizer 'sdg'.*Did you mean 'sgd'"),
        ({"optimizer": "adamax"}, r"optimizer 'adamax'.*Did you mean 'adam"),
        ({"rate": 0}, r"rate.*above 0.*got 0"),
        ({"rate": -0.1}, r"rate.*-0\.1"),
        ({"rate": math.nan}, r"rate.*nan"),
        ({"rate": math.inf}, r"rate.*inf"),
        ({"schedule": "onecycle"}, r"schedule 'onecycle'.*Did you mean 'one-cycle'"),
        ({"momentum": 1.5}, r"momentum.*at most 1.*got 1\.5"),
        ({"weight_decay": -1}, r"weight_decay.*-1"),
        ({"augment": "yes"}, r"augment.*'yes'"),
        ({"augment": 1}, r"augment.*1"),
        ({"precision": "fp16"}, r"precision 'fp16'.*Did you mean"),
        ({"device": "cude"}, r"device 'cude'.*Did you mean 'cuda'"),
        ({"seed": -1}, r"seed.*-1"),
        ({"seed": 2**31}, r"seed.*2147483648"),
    ],
)
def test_a_bad_recipe_is_refused_by_its_value(wrong, told):
    with pytest.raises(ValueError, match=told):
        Recipe(**wrong)


def test_whole_numbers_of_other_types_are_whole_numbers():
    """Parameter files and arrays give 2.0 and np.int64(2): the recipe is the same."""
    assert repr(Recipe(epochs=np.int64(2), seed=3.0)) == repr(Recipe(epochs=2, seed=3))
    assert type(Recipe(batch_size=64.0).batch_size) is int


def test_the_recipes_of_the_stages():
    assert set(ddlib.RECIPES) == {
        "global",
        "local",
        "dense network",
        "correction",
        "coherent",
        "transfer",
        "sub-networks",
        "channels",
    }
    assert ddlib.RECIPES["transfer"].rate == pytest.approx(ddlib.RECIPES["coherent"].rate / 5)
    assert not ddlib.RECIPES["dense network"].augment


def test_a_batch_larger_than_the_data_is_refused(tiny):
    with pytest.raises(ValueError, match="batch_size 65 is larger than the data: 64 images"):
        fit(vgg(), tiny, replace(QUICK, batch_size=65))
    fit(vgg(), tiny, replace(QUICK, batch_size=64))


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(tiny, device):
    assert devices.choose_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match=f"device '{device}' is not there; present: cpu"):
        fit(vgg(), tiny, replace(QUICK, device=device))
    with pytest.raises(ValueError, match=f"device '{device}' is not there"):
        train_aggregator(two_level(), tiny, replace(QUICK, device=device))


def test_bf16_is_refused_where_it_cannot_be(monkeypatch):
    with pytest.raises(ValueError, match=r"'bf16' is not supported on device 'mps'"):
        devices.choose_precision("bf16", torch.device("mps"))
    assert devices.choose_precision("auto", torch.device("mps")) == "fp32"
    for able, chosen in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: {"avx512_bf16": able})
        assert devices.choose_precision("auto", torch.device("cpu")) == chosen


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


def test_same_seed_same_weights(tiny):
    first, second, third, fourth = vgg(), vgg(), vgg(), vgg()
    recipe = replace(QUICK, augment=True, seed=4)
    a = fit(first, tiny, recipe)
    torch.manual_seed(99)  # the global random state is of no concern
    b = fit(second, tiny.train, recipe)
    fit(third, tiny, replace(recipe, seed=5))
    fit(fourth, tiny, replace(recipe, augment=False))
    assert_same_state(first, second)
    assert a[TIMELESS].equals(b[TIMELESS])
    assert_other_state(first, third)
    assert_other_state(first, fourth)


def test_training_leaves_the_global_random_state_alone(tiny):
    torch.manual_seed(1)
    expected = torch.rand(3)
    net = vgg()
    torch.manual_seed(1)
    fit(net, tiny, replace(QUICK, augment=True))
    assert torch.equal(torch.rand(3), expected)


def test_dropout_depends_on_the_seed_alone(tiny):
    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 144, 4))

    nets = [make() for _ in range(3)]
    for number, (net, seed) in enumerate(zip(nets, (0, 0, 1), strict=True)):
        torch.manual_seed(number)
        fit(net, tiny, replace(QUICK, seed=seed))
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


def test_every_image_is_seen_once_an_epoch(tiny):
    """The mean loss of one epoch at a rate of nearly nothing is the loss of the set."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 4)).double()
    x = prepare(tiny.train.images, tiny.train, torch.float64)
    expected = F.cross_entropy(net(x), tiny.train.labels).item()
    right = (net(x).argmax(1) == tiny.train.labels).double().mean().item()
    history = fit(net, tiny, replace(QUICK, epochs=2, rate=1e-12))
    assert history["loss"].tolist() == pytest.approx([expected] * 2)
    assert history["train_accuracy"].tolist() == pytest.approx([right] * 2)


def test_images_are_augmented_anew_each_epoch(tiny):
    seen = []
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 4))
    net.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    fit(net, tiny, replace(QUICK, epochs=2, batch_size=64, augment=True))
    first, second = (sorted(x.flatten(1).sum(1).tolist()) for x in seen)
    assert first != pytest.approx(second)
    plain = []
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 4))
    net.register_forward_pre_hook(lambda module, inputs: plain.append(inputs[0].clone()))
    fit(net, tiny, replace(QUICK, epochs=2, batch_size=64))
    first, second = (sorted(x.double().flatten(1).sum(1).tolist()) for x in plain)
    assert first == pytest.approx(second)
    assert not torch.equal(*plain)  # in another order


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_it_learns(tiny, optimizer):
    net = vgg(width=8)
    recipe = replace(QUICK, epochs=8, batch_size=8, optimizer=optimizer, rate=0.03 if optimizer == "sgd" else 3e-3)
    history = fit(net, tiny, recipe)
    assert history["loss"].iloc[-1] < 0.5 * history["loss"].iloc[0]
    assert accuracy(predict(net, tiny.test), tiny.test.labels) > 0.6  # chance: 0.25


def test_it_learns_on_volumes(tiny3d):
    local = local_cnns("cnn3d", Decomposition.grid((8, 8, 4), (2, 2, 1)), width=24)
    history = fit(local, tiny3d, replace(QUICK, epochs=12, batch_size=8, optimizer="adam", rate=3e-3))
    assert history["loss"].iloc[-1] < 0.5 * history["loss"].iloc[0]
    assert min(accuracy(predict(local, tiny3d.test), tiny3d.test.labels)) > 0.5


def test_the_coherent_model_learns_in_all_its_parts(tiny):
    model, before = two_level(), two_level()
    history = fit(model, tiny, replace(QUICK, epochs=10, batch_size=8, optimizer="adam", rate=3e-3))
    assert history["loss"].iloc[-1] < 0.7 * history["loss"].iloc[0]
    assert_other_state(model, before)


# ── schedules ──


@pytest.mark.parametrize("epochs", [5, 20])
@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
def test_shape_of_the_schedule(tiny, schedule, epochs):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 4))
    rates = fit(net, tiny, replace(QUICK, epochs=epochs, schedule=schedule, rate=0.3))["rate"].to_numpy()
    assert (rates > 0).all()
    assert (rates <= 0.3).all()
    if schedule == "constant":
        assert (rates == 0.3).all()
        return
    top = epochs // 5 if schedule == "one-cycle" else 0
    assert (np.diff(rates[:top]) > 0).all()
    assert (np.diff(rates[max(top, 1) :]) < 0).all()
    assert rates.max() > 0.25
    assert rates[-1] < 0.02 * 0.3
    if schedule == "one-cycle" and epochs == 20:
        assert rates[0] < 0.3 * rates.max()
        assert rates.argmax() in (3, 4)


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


def test_the_loss_is_computed_in_full_precision():
    assert cross_entropy(torch.zeros(2, 3, dtype=torch.bfloat16), torch.tensor([0, 1])).dtype == torch.float32
    assert cross_entropy(torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0, 1])).dtype == torch.float64


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


@pytest.mark.parametrize(
    "recipe",
    [
        replace(QUICK, epochs=4, augment=True),
        replace(QUICK, epochs=4, augment=True, optimizer="adam", rate=1e-3, precision="bf16"),
    ],
    ids=["sgd", "adam-bf16"],
)
@pytest.mark.parametrize("what", ["global", "local", "coherent"])
def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(tiny, tmp_path, recipe, what):
    make = {"global": vgg, "local": lambda: two_level().local, "coherent": two_level}[what]
    path = tmp_path / "deep" / "model.pt"
    whole, resumed = make(), make()
    history = fit(whole, tiny, recipe, metrics={"m": lambda m: 0.5})
    with pytest.raises(Interrupted):
        fit(make(), tiny, recipe, metrics={"m": stop_in_epoch(3)}, checkpoint=path)
    assert [p.name for p in path.parent.iterdir()] == ["model.pt"]
    told = fit(resumed, tiny, recipe, metrics={"m": lambda m: 0.5}, checkpoint=path)
    assert_same_state(resumed, whole)
    assert told[[*TIMELESS, "m"]].equals(history[[*TIMELESS, "m"]])
    done = make()
    again = fit(done, tiny, recipe, metrics={"m": stop_in_epoch(1)}, checkpoint=path)  # nothing is left to do
    assert_same_state(done, whole)
    assert again.equals(told)


def test_the_dense_network_goes_on_as_well(tiny, tmp_path):
    recipe = replace(ddlib.RECIPES["dense network"], epochs=4, batch_size=16)
    whole, resumed = two_level(), two_level()
    history = train_aggregator(whole, tiny, recipe)
    with pytest.raises(Interrupted):
        train_aggregator(two_level(), tiny, recipe, metrics={"m": stop_in_epoch(3)}, checkpoint=tmp_path / "c.pt")
    told = train_aggregator(resumed, tiny, recipe, checkpoint=tmp_path / "c.pt")
    assert_same_state(resumed, whole)
    assert told[TIMELESS].equals(history[TIMELESS])


@pytest.mark.parametrize(("field", "value"), [("rate", 0.25), ("epochs", 3), ("seed", 1), ("optimizer", "adamw")])
def test_a_checkpoint_of_another_recipe_is_refused(tiny, tmp_path, field, value):
    path = tmp_path / "model.pt"
    fit(vgg(), tiny, QUICK, checkpoint=path)
    before, net = path.read_bytes(), vgg()
    with pytest.raises(ValueError, match=f"{path}.*{field}.*{getattr(QUICK, field)}.*{value}"):
        fit(net, tiny, replace(QUICK, **{field: value}), checkpoint=path)
    assert path.read_bytes() == before
    assert_same_state(net, vgg())


def other_images(data, seed):
    return replace(data, train=replace(data.train, images=data.train.images.flip(0))), seed


def other_labels(data, seed):
    return replace(data, train=replace(data.train, labels=data.train.labels.flip(0))), seed


def other_weights(data, seed):
    return data, seed + 1


@pytest.mark.parametrize("other", [other_images, other_labels, other_weights])
@pytest.mark.parametrize("what", ["global", "local", "dense network"])
def test_a_checkpoint_of_another_training_is_refused(tiny, tmp_path, what, other):
    def train(data, seed):
        if what == "dense network":
            model = two_level(seed=seed)
            train_aggregator(model, data, replace(QUICK, augment=False), checkpoint=tmp_path / "c.pt")
        else:
            model = vgg(seed=seed) if what == "global" else two_level(seed=seed).local
            fit(model, data, QUICK, checkpoint=tmp_path / "c.pt")

    train(tiny, 0)
    before = (tmp_path / "c.pt").read_bytes()
    with pytest.raises(ValueError, match=r"c\.pt belongs to another training: of other (images|initial)"):
        train(*other(tiny, 0))
    assert (tmp_path / "c.pt").read_bytes() == before
    train(tiny, 0)  # its own is taken


def test_a_checkpoint_of_other_windows_is_refused(tiny, tmp_path):
    fit(local_cnns("vgg9", Decomposition.grid((12, 12), (2, 2)), channels=3), tiny, QUICK, checkpoint=tmp_path / "c.pt")
    other = local_cnns("vgg9", Decomposition.grid((12, 12), (4, 1)), channels=3)
    with pytest.raises(ValueError, match="belongs to another training"):
        fit(other, tiny, QUICK, checkpoint=tmp_path / "c.pt")


def flip(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize(
    "harm",
    [
        flip,
        lambda d: d[:-100],
        lambda d: d[:200],
        lambda d: b"",
        lambda d: b"epoch,loss\n1,0.5\n",
    ],
    ids=["flipped", "cut", "cut-short", "empty", "text"],
)
def test_a_damaged_checkpoint_is_named_and_set_aside(tiny, tmp_path, harm):
    path = tmp_path / "model.pt"
    fit(vgg(), tiny, QUICK, checkpoint=path)
    harmed = harm(path.read_bytes())
    path.write_bytes(harmed)
    net = vgg(seed=1)
    with pytest.raises(files.DamagedFile, match=f"{path} is damaged.*set aside as .*damaged-"):
        fit(net, tiny, QUICK, checkpoint=path)
    assert_same_state(net, vgg(seed=1))
    (away,) = tmp_path.glob("model.pt.damaged-*")
    assert away.read_bytes() == harmed
    fit(net, tiny, QUICK, checkpoint=path)  # the next one starts anew
    expected = vgg(seed=1)
    fit(expected, tiny, QUICK)
    assert_same_state(net, expected)


class Hostile:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_hostile_checkpoint_does_nothing(tiny, tmp_path, form):
    proof, path = tmp_path / "proof", tmp_path / "model.pt"
    hostile = Hostile(f"touch {proof}")
    if form == "pickle":
        path.write_bytes(pickle.dumps(hostile))
    else:
        files.save_tensors(path, {"recipe": {}, "history": [], "model": hostile})
    net = vgg()
    with pytest.raises(files.DamagedFile, match=r"model\.pt is damaged"):
        fit(net, tiny, QUICK, checkpoint=path)
    assert not proof.exists()
    assert_same_state(net, vgg())


def test_a_checkpoint_that_cannot_be_written_is_told_before_training(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    net = vgg()
    with pytest.raises(OSError, match="cannot be written"):
        fit(net, tiny, QUICK, checkpoint=tmp_path / "file" / "model.pt")
    assert_same_state(net, vgg())


# ── prediction ──


@pytest.mark.parametrize("batch_size", [500, 32, 7])
def test_prediction_by_hand(tiny, batch_size):
    net = vgg(dtype=torch.float64)
    fit(net, tiny, QUICK)
    found = predict(net, tiny.test, batch_size=batch_size)
    assert net.training
    x = prepare(tiny.test.images, tiny.test, torch.float64)
    with torch.no_grad():
        expected = torch.softmax(copy.deepcopy(net).eval()(x), -1)
    assert found.shape == (32, 4)
    assert found.dtype == torch.float64
    assert not found.requires_grad
    assert apart(found, expected) < 1e-12
    shares = (found.argmax(1) == tiny.test.labels).double().mean().item()
    assert accuracy(found, tiny.test.labels) == pytest.approx(shares)


def test_prediction_of_local_cnns(tiny):
    local = two_level(dtype=torch.float64).local
    fit(local, tiny, QUICK)
    found = predict(local, tiny.test, batch_size=10)
    assert found.shape == (32, 4, 4)
    x = prepare(tiny.test.images, tiny.test, torch.float64)
    for i, piece in enumerate(local.decomposition.cut(x)):
        with torch.no_grad():
            expected = local.subnet(i).eval()(piece).softmax(1)
        assert apart(found[:, i], expected) < 1e-10
        share = accuracy(expected, tiny.test.labels)
        assert accuracy(found, tiny.test.labels)[i] == pytest.approx(share)


@pytest.mark.parametrize("mode", [True, False])
def test_prediction_leaves_the_training_mode_as_it_was(tiny, mode):
    net = vgg().train(mode)
    before = copy.deepcopy(net)
    predict(net, tiny.test)
    assert net.training is mode
    assert all(m.training is mode for m in net.modules())
    assert_same_state(net, before)


def test_prediction_leaves_the_training_mode_of_each_part_as_it_was(tiny):
    model = two_level().train()
    model.local.eval()
    predict(model, tiny.test)
    assert model.head.training
    assert not model.local.training


def test_prediction_restores_the_mode_after_an_error(tiny):
    net = nn.Sequential(nn.Flatten(), nn.Linear(5, 4))
    with pytest.raises(RuntimeError):
        predict(net, tiny.test)
    assert net.training


def test_prediction_in_bf16_gives_probabilities_in_full_precision(tiny):
    net = vgg()
    fit(net, tiny, QUICK)
    rounded, exact = predict(net, tiny.test, precision="bf16"), predict(net, tiny.test, precision="fp32")
    assert rounded.dtype == torch.float32
    assert torch.allclose(rounded.sum(1), torch.ones(32), atol=1e-6)
    assert 0 < apart(rounded, exact) < 0.1


# ── the two-step CNN-DNN and transfer ──


@pytest.mark.parametrize("given_probabilities", [False, True])
def test_the_second_step_trains_the_dense_network_alone(tiny, given_probabilities):
    model, before = two_level(), two_level()
    fit(model.local, tiny, replace(QUICK, epochs=2))
    trained = copy.deepcopy(model.local)
    recipe = replace(ddlib.RECIPES["dense network"], batch_size=16, device="cpu")
    p = predict(model.local, tiny.train) if given_probabilities else None
    history = train_aggregator(model, tiny, recipe, probabilities=p)
    assert_same_state(model.local, trained)  # batch-norm statistics included
    assert_other_state(model.head, before.head)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert all(p.requires_grad for p in model.parameters())
    reference = two_level()
    reference.local.load_state_dict(trained.state_dict())
    train_aggregator(reference, tiny.train, recipe)
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


def test_before_its_first_step_the_transfer_model_is_the_cnn_dnn(tiny):
    model = two_level()
    fit(model.local, tiny, replace(QUICK, epochs=2))
    train_aggregator(model, tiny, replace(ddlib.RECIPES["dense network"], epochs=3, batch_size=16))
    transfer = two_level(seed=9)
    transfer.load_state_dict(model.state_dict())
    x = prepare(tiny.test.images, tiny.test)
    with torch.no_grad():
        two_steps = model.head(predict(model.local, tiny.test, precision="fp32"))
        together = transfer.eval()(x)
    assert apart(together, two_steps) < 1e-6
    assert apart(predict(transfer, tiny.test, precision="fp32"), two_steps.softmax(1)) < 1e-6


def test_a_model_in_double_precision_stays_so(tiny):
    model = two_level(dtype=torch.float64)
    fit(model.local, tiny, replace(QUICK, precision="auto", augment=True))
    train_aggregator(model, tiny, replace(QUICK, epochs=1))
    fit(model, tiny, replace(QUICK, precision="auto"))
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert predict(model, tiny.test).dtype == torch.float64


def test_accuracy_by_hand():
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    assert accuracy(p, torch.tensor([0, 1, 1, 1])) == 0.75
    assert accuracy(torch.stack([p, p.flip(1)], 1), torch.tensor([0, 1, 1, 1])) == [0.75, 0.25]


# ── real habits ──


def test_nothing_to_train_is_told(tiny):
    net = vgg().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train: all weights of the VGG9 are frozen"):
        fit(net, tiny, QUICK)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_model_in_half_precision_predicts_and_trains(tiny, dtype):
    model = two_level().to(dtype)
    p = predict(model, tiny.test)
    assert p.dtype == torch.float32
    assert torch.allclose(p.sum(1), torch.ones(len(p)), atol=1e-5)
    history = fit(model, tiny, replace(QUICK, epochs=1, rate=0.01))
    assert history["loss"].notna().all()
    assert {q.dtype for q in model.parameters()} == {dtype}


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
