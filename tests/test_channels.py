"""P3: what `split` and `compose` keep, what starts to learn, and the bounds on the composed network."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from helpers import apart, assert_same_state, small_net
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import ddlib
from ddlib import Decomposition, Experiment, LocalCNNs, Recipe, fit, train_local
from ddlib.channels import bounds, compose, feature_maps, shares, split
from ddlib.images import prepare
from ddlib.networks.backbones import BACKBONES, VGG9, Backbone

every_kind = pytest.mark.parametrize(
    ("kind", "dims"), [("vgg9", 2), ("resnet20", 2), ("mobilenet_v2", 2), ("cnn3d", 3), ("resnet20", 3)]
)
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5}
QUICK = Recipe(epochs=1, batch_size=16, rate=0.02, momentum=0.0, augment=False, precision="fp32", device="cpu")


def lived_in(net: nn.Module, seed: int) -> nn.Module:
    """Weights and batch-norm statistics far from their start, all different."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if value.ndim == 0:
            value.fill_(7)
            continue
        drawn = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)
        if name.endswith("running_var"):
            value.copy_(0.5 + drawn.abs())
        elif value.ndim == 1:
            value.copy_(name.endswith("weight") + 0.3 * drawn)
        else:
            value.copy_(drawn * math.sqrt(2 / value[0].numel()))
    return net


def family(kind, dims, widths, seed=0, dtype=torch.float64, channels=2, classes=3) -> list[Backbone]:
    sizes = {"in_channels": channels, "num_classes": classes, "dims": dims}
    subs = [ddlib.backbones.build(kind, **sizes, width=width) for width in widths]
    return [lived_in(sub, 100 * seed + p).to(dtype).eval() for p, sub in enumerate(subs)]


def images(dims, size=3, seed=0, dtype=torch.float64, channels=2, length=5):
    shape = (size, channels, *(length + axis for axis in range(dims)))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def average(subs, x):
    return torch.stack([sub(x) for sub in subs]).mean(0)


def off_diagonal(tensor, widths):
    """Mask of a (out, in, ...) kernel whose channels are shared out like `widths`."""
    owners = [
        torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths) * n // sum(widths))
        for n in tensor.shape[:2]
    ]
    return owners[0][:, None] != owners[1]


def kernels(net):
    """The names of the kernels that have blocks between sub-networks: all but the first, depthwise and the last."""
    weights = [name for name, value in net.state_dict().items() if value.ndim > 1]
    return [name for name in weights[1:-1] if net.state_dict()[name].shape[1] > 1]


@st.composite
def partitions(draw, kind, most=3):
    """Widths of sub-networks."""
    step = 4 if kind == "mobilenet_v2" else 1
    return [step * width for width in draw(st.lists(st.integers(1, 3 if step == 1 else 2), min_size=1, max_size=most))]


# ── the composed network is its sub-networks ──────────────────────────────────────────────────────────────────


def side_by_side(subs, windows):
    """Sub-networks as local CNNs, each on its window."""
    first = subs[0]
    size = {"in_channels": first.in_channels, "num_classes": first.num_classes, "width": first.width * len(subs)}
    with torch.random.fork_rng():
        local = LocalCNNs(type(first), windows, **size, local_width=first.width)
    local.to(next(first.parameters()).device, next(first.parameters()).dtype).train(first.training)
    for index, sub in enumerate(subs):
        local.load_subnet(index, sub)
    return local


def whole(shape):
    """Two windows, each the whole image."""
    return Decomposition.regions(shape, {name: [(0, n) for n in shape] for name in ("one", "two")})


@every_kind
@settings(max_examples=4)
@given(data=st.data(), dtype=st.sampled_from([*TOLERANCE]))
def test_feature_maps_and_logits_are_those_of_the_subnetworks(kind, dims, data, dtype):
    widths, seed = data.draw(partitions(kind)), data.draw(st.integers(0, 99))
    channels, classes = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 4))
    subs = family(kind, dims, widths, seed, dtype, channels, classes)
    whole, x = compose(subs), images(dims, 2, seed, dtype, channels, data.draw(st.integers(4, 7)))
    assert type(whole) is BACKBONES[kind]
    assert (whole.width, whole.groups, whole.training) == (sum(widths), 1, False)
    maps, theirs = feature_maps(whole, x), [feature_maps(sub, x) for sub in subs]
    assert [*maps] == [*theirs[0]]
    assert {name.rpartition(".")[0] for name in kernels(whole)} <= maps.keys()
    for name, found in maps.items():
        assert apart(found, torch.cat([m[name] for m in theirs], 1)) <= TOLERANCE[dtype], name
    assert apart(whole(x), average(subs, x)) <= TOLERANCE[dtype]


@every_kind
def test_in_train_mode_too_with_the_same_batch_statistics(kind, dims):
    subs = [sub.train() for sub in family(kind, dims, [4, 8])]
    whole, x = compose(subs), images(dims, 4)
    assert whole.training
    assert apart(whole(x), average(subs, x)) < 1e-9
    assert_same_state(whole, compose(subs), 1e-9)
    assert all(count == 8 for name, count in whole.state_dict().items() if name.endswith("num_batches_tracked"))


def test_feature_maps_leave_the_network_as_it_was():
    net = family("resnet20", 2, [2])[0].train()
    net.features[0].eval()  # as a frozen part is
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(RuntimeError, match="channels"):
        feature_maps(net, images(2, channels=5))
    maps = feature_maps(net, images(2))
    assert [name for name, part in net.named_modules() if not part.training] == ["features.0"]
    assert not any(layer._forward_hooks for layer in net.modules())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert (maps["features.3.norm1"] < 0).any()  # what the block then overwrites in place
    assert [*maps][-1] == "features"


# ── there and back ────────────────────────────────────────────────────────────────────────────────────────────


@every_kind
@settings(max_examples=4)
@given(data=st.data(), dtype=st.sampled_from([*TOLERANCE]))
def test_split_undoes_compose(kind, dims, data, dtype):
    widths, seed = data.draw(partitions(kind, 4)), data.draw(st.integers(0, 99))
    subs = family(kind, dims, widths, seed, dtype)
    whole = compose(subs)
    back = split(whole, widths)
    again = compose(back)
    exact, unit = len(subs) in (1, 2, 4), 2 * torch.finfo(dtype).eps
    mean = torch.stack([sub.head.bias for sub in subs]).mean(0)
    for sub, other in zip(subs, back, strict=True):
        assert (type(other), other.width, other.training) == (type(sub), sub.width, False)
        assert (other.head.bias - mean).abs().max() <= unit
        assert_same_state(other.head, nn.ParameterDict({"weight": sub.head.weight, "bias": other.head.bias}), unit)
        if not exact:
            other.head.weight.data.copy_(sub.head.weight)
        other.head.bias.data.copy_(sub.head.bias)
        assert_same_state(other, sub)
    if not exact:
        assert apart(again.head.weight, whole.head.weight) <= unit
        again.head.weight.data.copy_(whole.head.weight)
    assert_same_state(again, whole)


@given(width=st.integers(1, 9), data=st.data())
@settings(max_examples=20)
def test_a_number_of_parts_is_as_even_as_possible(width, data):
    parts = data.draw(st.integers(1, width))
    net = family("vgg9", 2, [width])[0]
    subs = split(net, parts)
    widths = [sub.width for sub in subs]
    assert len(widths) == parts
    assert sum(widths) == width
    assert max(widths) - min(widths) <= 1
    assert widths == sorted(widths, reverse=True)
    for one, other in zip(subs, split(net, tuple(widths)), strict=True):
        assert_same_state(one, other)


def test_split_keeps_the_diagonal_blocks_of_any_network():
    net = family("resnet20", 2, [6])[0].train()
    one, two = split(net, [2, 4])
    assert torch.equal(two.features[3].conv1.weight, net.features[3].conv1.weight[2:, 2:])
    assert torch.equal(one.features[0].weight, net.features[0].weight[:2])
    assert torch.equal(two.features[6].conv1.weight, net.features[6].conv1.weight[4:, 2:])
    assert torch.equal(one.head.weight, 2 * net.head.weight[:, :8])
    assert torch.equal(one.head.bias, net.head.bias)
    assert one.training
    assert one.head.weight.requires_grad
    one.head.weight.data.zero_()
    assert net.head.weight.all()  # a copy


def test_precision_is_kept_and_no_random_number_drawn():
    subs = family("vgg9", 2, [2, 2], dtype=torch.bfloat16)
    before = torch.get_rng_state()
    for net in (compose(subs), *split(compose(subs), 2)):
        assert {t.dtype for t in (*net.parameters(), *net.buffers()) if t.ndim} == {torch.bfloat16}
    assert torch.equal(torch.get_rng_state(), before)


# ── what lies between the sub-networks ────────────────────────────────────────────────────────────────────────


@every_kind
def test_the_blocks_between_subnetworks_learn(kind, dims):
    widths = [4, 4]
    whole = compose(family(kind, dims, widths)).train()
    for name in kernels(whole):
        between = off_diagonal(whole.state_dict()[name], widths)
        assert not whole.state_dict()[name][between].any(), name
        assert whole.state_dict()[name][~between].all(), name
    assert whole.state_dict().keys() == BACKBONES[kind](2, 3, 8, dims).state_dict().keys()  # no masks
    F.cross_entropy(whole(images(dims, 4)), torch.arange(4) % 3).backward()
    torch.optim.SGD(whole.parameters(), 0.05).step()
    assert all(p.requires_grad for p in whole.parameters())
    for name in kernels(whole):
        between = off_diagonal(whole.state_dict()[name], widths)
        assert whole.get_parameter(name).grad[between].abs().max() > 0, name
        assert whole.state_dict()[name][between].abs().max() > 0, name


# ── bounds ────────────────────────────────────────────────────────────────────────────────────────────────────


def assert_bounded(subs, x, labels, slack=1e-6):
    """The composed network's own figures are those of `bounds`, and lie within."""
    with torch.no_grad():
        logits, own = torch.stack([sub(x) for sub in subs], 1), compose(subs).eval()(x)
    found = bounds(logits, labels)
    assert F.cross_entropy(own.double(), labels).item() == pytest.approx(found["cross_entropy"], rel=1e-4, abs=1e-5)
    assert (own.argmax(1) == labels).double().mean().item() == pytest.approx(found["accuracy"], abs=1e-9)
    costs = [F.cross_entropy(logits[:, p].double(), labels).item() for p in range(len(subs))]
    assert found["cross_entropy_high"] == pytest.approx(sum(costs) / len(costs))
    assert found["cross_entropy_highest"] == pytest.approx(max(costs))
    assert_ordered(found, logits, labels, slack)
    return found


def assert_ordered(found, logits, labels, slack=1e-9):
    cost = found["cross_entropy"]
    assert 0 <= found["cross_entropy_low"] <= cost + slack
    assert cost <= found["cross_entropy_high"] + slack <= found["cross_entropy_highest"] + 2 * slack
    assert found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"]
    accuracies = (logits.argmax(-1) == labels[:, None]).double().mean(0)
    assert found["accuracy_low"] >= 1 - (1 - accuracies).sum().item() - 1e-9


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 5), st.integers(2, 6)),
    seed=st.integers(0, 999),
    scale=st.sampled_from([0.0, 0.1, 1.0, 10.0, 1e3, 1e5]),
    alike=st.floats(0, 1),
)
def test_bounds_hold_for_any_logits(size, seed, scale, alike):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(size, generator=generator, dtype=torch.float64)
    logits += alike * (logits[:, :1] - logits)
    labels = torch.randint(0, size[2], size[:1], generator=generator)
    found = bounds(logits, labels)
    assert_ordered(found, logits, labels, slack=1e-9 * max(scale, 1))
    shifted = bounds(logits.log_softmax(-1), labels)  # log-probabilities are logits
    assert all(shifted[name] == pytest.approx(found[name], rel=1e-6, abs=1e-6) for name in found)


def test_bounds_by_hand():
    p = torch.tensor([[[0.4, 0.59, 0.01], [0.4, 0.01, 0.59]]])  # both wrong, each with another class
    found = bounds(p.log(), torch.tensor([0]))
    assert found["accuracy"] == 1
    assert (found["accuracy_low"], found["accuracy_high"]) == (0, 1)
    assert found["cross_entropy_high"] == pytest.approx(-math.log(0.4))
    assert found["cross_entropy"] == pytest.approx(-math.log(0.4 / (0.4 + 2 * math.sqrt(0.0059))))
    assert 0 < found["cross_entropy_low"] < found["cross_entropy"] < -math.log(0.4)
    agreed = bounds(p[:, :1].expand(-1, 3, -1).log(), torch.tensor([0]))
    assert agreed["accuracy_high"] == agreed["accuracy"] == 0
    assert agreed["cross_entropy_low"] == pytest.approx(agreed["cross_entropy_high"])
    certain = bounds(torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[1, 0, 0], [1, 0, 0]]]).log(), torch.tensor([0, 1]))
    assert certain["cross_entropy_high"] == math.inf  # probabilities of 0 leave the bounds true
    assert certain["cross_entropy_low"] == math.inf  # both are certain of the wrong class of the second image
    assert certain["accuracy_high"] == 0.5


def test_bounds_and_feature_maps_of_trained_sub_networks():
    data, recipe = ddlib.load_dataset("digits"), replace(QUICK, epochs=2, batch_size=64, rate=0.05, momentum=0.9)
    torch.manual_seed(0)
    net = ddlib.backbones.build("vgg9", 1, 10, 8)
    local = side_by_side(split(net, 2), whole(data.image_shape))
    ddlib.train_local(local, data, recipe, progress=False)
    subs = [local.subnet(i).eval() for i in range(2)]
    x, labels = prepare(data.test.images, data.test), data.test.labels
    maps, theirs = feature_maps(compose(local), x[:50]), [feature_maps(sub, x[:50]) for sub in subs]
    assert all(apart(maps[n], torch.cat([m[n] for m in theirs], 1)) <= 1e-5 for n in maps)
    found = assert_bounded(subs, x, labels)
    assert found["accuracy"] > 0.5
    assert found["cross_entropy_low"] > 0.3 * found["cross_entropy"]  # a bound that says something
    assert found["accuracy_high"] < 1


# ── training the sub-networks ─────────────────────────────────────────────────────────────────────────────────


def test_shares(tiny):
    split_ = tiny.train
    for parts in (1, 3, 4):
        dealt = shares(split_, parts, seed=1)
        assert [len(share) for share in dealt] == [64 // parts] * parts
        counts = torch.stack([torch.bincount(share.labels, minlength=4) for share in dealt])
        assert counts.max() - counts.min() <= 2
        seen = {bytes(image.numpy()) for share in dealt for image in share.images}
        assert len(seen) == 64 // parts * parts  # nothing twice
        assert all(torch.equal(share.mean, split_.mean) for share in dealt)
        assert all(torch.equal(a.images, b.images) for a, b in zip(dealt, shares(split_, parts, seed=1), strict=True))
    first, other = shares(split_, 2, seed=1)[0], shares(split_, 2, seed=2)[0]
    assert not torch.equal(first.images, other.images)
    subs = split(family("vgg9", 2, [4], channels=3, classes=4)[0], 2)
    for sub, share in zip(subs, shares(split_, 2), strict=True):
        ddlib.fit(sub, share, QUICK, progress=False)
    assert compose(subs).width == 4
    with pytest.raises(ValueError, match="number of shares of 64 images must be a whole number from 1 to 64, got 65"):
        shares(split_, 65)


# ── bad input ─────────────────────────────────────────────────────────────────────────────────────────────────


class Fixed(VGG9):
    """A backbone of one's own, with a layer that does not grow with its width."""

    def __init__(self, in_channels: int, num_classes: int, width: int, dims: int = 2, groups: int = 1):
        Backbone.__init__(self, in_channels, num_classes, width, dims, groups)
        self.features = nn.Sequential(self.conv(in_channels, width), self.conv(width, 5), nn.ReLU())
        self.head = self.classifier(5)


def net(kind="vgg9", width=4, channels=3, classes=10, dims=2, **more):
    return ddlib.backbones.build(kind, channels, classes, width, dims, **more)


BAD = {
    "more parts than channels": (lambda: split(net(), 5), "parts of 4 channels .* from 1 to 4, got 5"),
    "half a part": (lambda: split(net(), 2.5), "got 2.5"),
    "widths that do not add up": (lambda: split(net(), [1, 2]), r"must add up to 4, got \[1, 2\]"),
    "a width of zero": (lambda: split(net(), [4, 0]), "width must be a whole number ≥ 1, got 0"),
    "none": (lambda: compose([]), "agree in kind, got none"),
    "kinds": (lambda: compose([net(), net("resnet20")]), "kind, got VGG9, ResNet20"),
    "classes": (lambda: compose([net(), net(classes=7)]), "classes, got 10, 7"),
    "precisions": (lambda: compose([net(), net().double()]), "precision, got torch.float32 on cpu, torch.float64 on"),
    "a module": (lambda: split(small_net(3, 4, 4, 2), 2), "layer '0' of a Sequential cannot be split"),
    "modules": (lambda: compose([small_net(3, 4, 4, 2)] * 2), "layer '0' of a Sequential cannot be split"),
    "fixed layer": (lambda: split(Fixed(3, 4, 4), 2), r"'features.1' cannot be split: its sizes \[5, 5\] at widths"),
    "grouped": (lambda: split(net(groups=2), 2), "layer 'features.0' of a VGG9 cannot be split"),
    "odd MobileNetV2": (lambda: split(net("mobilenet_v2", 12), 2), r"layers.6' .* \[4, 4\] at widths \[6, 6\]"),
    "shortcut": (lambda: compose([net("mobilenet_v2", w) for w in (3, 5)]), "'features.4' .* another at width 3 than"),
    "logits": (lambda: bounds(torch.zeros(3, 4), torch.zeros(3).long()), r"needs logits \(n, P, K\)"),
    "NaN": (
        lambda: bounds(torch.tensor([[[0.0, 1]], [[0, math.nan]]]), torch.zeros(2).long()),
        "NaN. for 1 of 2 images",
    ),
    "labels": (lambda: bounds(torch.zeros(3, 2, 4), torch.zeros(2).long()), r"got \(3, 2, 4\), \(2,\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(case):
    attempt, told = BAD[case]
    with pytest.raises(ValueError, match=told):
        attempt()


# ── in the engines and in an experiment ──


def test_sub_networks_on_shares_of_their_own_are_each_trained_alone(tiny):
    """One by one = on an executor = each fitted on its own share, to 1e-9."""
    recipe = Recipe(epochs=2, batch_size=8, momentum=0.0, rate=0.05, precision="fp32")
    dec = Decomposition.regions((12, 12), {f"channels {p}": [(0, 12), (0, 12)] for p in range(3)})
    local = LocalCNNs("vgg9", dec, in_channels=3, num_classes=4, width=12, local_width=4).double()
    hands = shares(tiny.train, 3)
    alone = [local.subnet(i) for i in range(3)]
    loop, pooled = (copy.deepcopy(local) for _ in range(2))
    train_local(loop, hands, recipe, progress=False)
    with ThreadPoolExecutor(1) as pool:
        train_local(pooled, hands, recipe, engine=pool, progress=False)
    for i, net in enumerate(alone):
        fit(net, hands[i], recipe, progress=False)
        for engine in (loop, pooled):
            for (name, expected), found in zip(net.state_dict().items(), engine.subnet(i).state_dict().values()):
                assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12), name


def test_shares_must_be_as_many_as_networks_and_are_not_fused(tiny):
    local = LocalCNNs("vgg9", Decomposition.grid((12, 12), 2), in_channels=3, num_classes=4, width=8)
    with pytest.raises(ValueError, match="4 local CNNs need as many splits, got 3"):
        train_local(local, shares(tiny.train, 3), progress=False)
    with pytest.raises(ValueError, match="engine 'fused' needs the same images for all"):
        train_local(local, shares(tiny.train, 4), engine="fused", progress=False)


@pytest.mark.parametrize("samples", ["shares", "windows"])
def test_channels_are_a_strategy(samples):
    small = {"train_size": 80, "width": 8, "epochs": 1, "batch_size": 16, "precision": "fp32"}
    strategies = ("global", "sub-networks", "composed", "channels")
    point = Experiment("digits", **small, samples=samples, strategies=strategies)
    record = point.record(progress=False)
    frame = record.frame()
    sizes = frame.groupby("strategy")["parameters"].first()
    assert sizes["composed"] == sizes["channels"] == sizes["global"]
    assert (frame["strategy"] == "sub-networks").sum() == 4
    assert record.predicted("sub-networks").shape == (4, 360)
    seconds = frame.groupby("strategy")["seconds"].first()
    assert seconds["sub-networks"] == seconds["composed"] < seconds["channels"]
    if samples != "windows":  # one input for all: the bounds hold, and the composed network is their average
        right = record.predicted("composed") == record.arrays["labels"]
        assert record.arrays["bounds/accuracy"] == pytest.approx(right.mean(), abs=1 / 360)
        bound = {name.removeprefix("bounds/"): value for name, value in record.arrays.items() if "bounds" in name}
        assert bound["accuracy_low"] <= bound["accuracy"] <= bound["accuracy_high"]
        assert bound["cross_entropy_low"] <= bound["cross_entropy"] <= bound["cross_entropy_high"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 10}, "width 10 cannot be split evenly into 4"),
        ({"channel_parts": 0}, "channel_parts must be a whole number ≥ 1"),
        ({"channel_parts": 2, "samples": "windows"}, "2 sub-networks .* do not fit the 4 windows"),
        ({"samples": "share"}, "Did you mean 'shares'"),
        ({"samples": "shares", "batch_size": 400}, "batch_size 400 is larger than a sub-network's share: 359"),
        ({"backbone": "mobilenet_v2", "width": 8, "channel_parts": 8}, "cannot be split"),
    ],
)
def test_what_cannot_be_split_is_refused_before_training(wrong, message):
    with pytest.raises(ValueError, match=message):
        Experiment("digits", **{"width": 8, "strategies": ("channels",)} | wrong).run(progress=False)
