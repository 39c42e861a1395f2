"""What was set on networks stays as it was set in every engine, and a network of one's own is held to what is asked."""

import copy
import pickle
import re
import resource
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import assert_same_state, small_net
from PIL import Image
from torch import nn
from torch.nn import functional as F

import ddlib
from ddlib import CNNDNN, Decomposition, DenseAggregator, LocalCNNs, Recipe, fit, predict, process_pool, train_local
from ddlib.networks.backbones import VGG9, Backbone

R = Recipe(epochs=2, batch_size=16, rate=0.05, precision="fp32")
DEC = Decomposition.grid((12, 12), 2)


def mk(backbone, **options) -> LocalCNNs:
    torch.manual_seed(0)
    return LocalCNNs(backbone, DEC, in_channels=3, num_classes=4, width=8, **options)


def dropping(in_channels: int, num_classes: int, width: int, dims: int) -> nn.Module:
    net = small_net(in_channels, num_classes, width, dims)
    return nn.Sequential(net[:2], nn.Dropout(0.1), nn.BatchNorm2d(2 * width), net[2:])


class Dropping(VGG9):
    def __init__(self, in_channels, num_classes, width, dims=2, groups=1):
        super().__init__(in_channels, num_classes, width, dims, groups)
        self.features.append(nn.Dropout(0.1))


def engines():
    yield "loop"
    with ThreadPoolExecutor(1) as threads:
        yield threads


# ── a copy is a copy of all ──


@pytest.mark.parametrize("backbone", [dropping, Dropping, "vgg9_plain"])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda n: n.part(range(4)), lambda n: pickle.loads(pickle.dumps(n))])
def test_a_copy_keeps_what_was_set(backbone, how):
    local = mk(backbone)
    for net in local.networks:
        for layer in net.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.7
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps, layer.momentum = 0.1, 0.3
                layer.eval()
        next(net.parameters()).requires_grad_(False)
    again = how(local)
    assert_same_state(again, local)
    for old, new in zip(local.modules(), again.modules(), strict=True):
        for name in ("p", "eps", "momentum", "training"):
            assert getattr(old, name, None) == getattr(new, name, None)
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in local.parameters()]
    one = local.subnet(2)
    assert {m.p for m in one.modules() if isinstance(m, nn.Dropout)} == {0.7}
    assert not next(one.parameters()).requires_grad


def test_frozen_weights_stay_in_every_engine(tiny):
    local = mk(dropping)
    for net in local.networks:
        net[0][0].requires_grad_(False)
    for engine in engines():
        trained = copy.deepcopy(local)
        train_local(trained, tiny, R, engine=engine, progress=False)
        for old, new in zip(local.networks, trained.networks, strict=True):
            assert torch.equal(old[0][0].weight, new[0][0].weight)
            assert not torch.equal(old[3][-1].weight, new[3][-1].weight)


def test_a_plain_vgg_drops_the_same_in_every_engine(tiny):
    first = mk("vgg9_plain")
    local = copy.deepcopy(first)
    train_local(local, tiny, R, progress=False)  # engine="auto"
    for engine in engines():
        other = copy.deepcopy(first)
        train_local(other, tiny, R, engine=engine, progress=False)
        assert_same_state(other, local)


def test_hooks_and_replaced_activations_are_used_in_every_engine(tiny):
    seen = []
    local = mk(dropping)
    for net in local.networks:
        net[0][1] = nn.Tanh()
        net[0].register_forward_hook(lambda *_: seen.append(1))
    results = []
    for engine in engines():
        seen.clear()
        results.append(copy.deepcopy(local))
        train_local(results[-1], tiny, R, engine=engine, progress=False)
        assert len(seen) == 4 * 2 * 4  # networks, epochs, steps
    assert_same_state(*results)
    assert all(isinstance(net[0][1], nn.Tanh) for net in results[0].networks)


def test_a_frozen_part_in_eval_mode_stays_so(tiny):
    model = VGG9(3, 4, 4)
    model.features.requires_grad_(False).eval()
    before = copy.deepcopy(model.features)
    fit(model, tiny, R, progress=False)
    assert_same_state(model.features, before)
    assert model.head.training
    assert not model.features.training


def test_a_layer_that_cannot_be_taken_apart_is_named():
    local = mk("vgg9")
    torch.nn.utils.parametrizations.spectral_norm(local.networks[0].features[0])
    with pytest.raises(ValueError, match=r"layer 'features\.0\S*' .* side by side cannot be taken apart"):
        local.subnet(0)


def test_sub_networks_of_another_width_keep_settings_and_refuse_replaced_layers():
    net = Dropping(3, 4, 8)
    net.features[-1].p = 0.4
    assert {m.p for m in net.fresh(4).modules() if isinstance(m, nn.Dropout)} == {0.4}
    net.features[2] = nn.Tanh()
    with pytest.raises(ValueError, match=r"layer 'features\.2' was replaced by Tanh"):
        ddlib.channels.split(net, 2)


# ── what a builder returns ──


class Flat(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.weight, self.output = nn.Parameter(torch.ones(1)), output

    def forward(self, x):
        return self.output(x * self.weight)


RETURNS = {
    r"got \(2, 4, 6, 6\)": lambda **_: Flat(lambda x: x[:, :1].expand(-1, 4, -1, -1)),
    r"4 classes for each of 1 windows, got \(2, 9\)": lambda **_: Flat(lambda x: x.flatten(1)[:, :9]),
    r"got \(2, 2\) for B = 2": lambda **_: Flat(lambda x: x.flatten(1)[:, :2]),
    "got dict": lambda **_: Flat(lambda x: {"out": x}),
    "got tuple": lambda **_: Flat(lambda x: (x, x)),
    "must be an nn.Module with parameters, got Sequential": lambda **_: nn.Sequential(nn.Flatten()),
    "must be an nn.Module with parameters, got int": lambda **_: 3,
    r"cannot take images \(2, 3, 6, 6\)": lambda **_: nn.Sequential(nn.Conv2d(3, 4, 9), nn.Flatten()),
}


@pytest.mark.parametrize("message", RETURNS)
def test_what_a_builder_returns_is_checked_when_it_is_built(message):
    with pytest.raises(ValueError, match=message):
        mk(RETURNS[message])


class Talking(VGG9):
    def forward(self, x):
        return super().forward(F.normalize(x, dim=1))


class Normed(VGG9):
    def __init__(self, *size, **options):
        super().__init__(*size, **options)
        self.features.append(nn.GroupNorm(1, self.head.weight.shape[1] * self.groups))


@pytest.mark.parametrize("kind", [Talking, Normed])
def test_groups_that_see_one_another_are_refused(kind):
    assert isinstance(kind(3, 4, 8), Backbone)
    with pytest.raises(ValueError, match=r"lets its groups see one another|cannot be taken apart"):
        mk(kind)


def test_a_builder_may_ask_for_the_shape_of_its_window(tiny):
    def flat(in_channels, num_classes, width, dims, window_shape):
        return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * window_shape[0] * window_shape[1], num_classes))

    dec = Decomposition.grid((12, 12), (1, 2), coarse=True)
    local = LocalCNNs(flat, dec, in_channels=3, num_classes=4, width=8)
    assert [net[1].in_features for net in local.networks] == [3 * 12 * 6] * 3
    train_local(local, tiny, R, progress=False)


# ── NaN is no result ──


def test_a_training_that_diverges_stops_and_says_so(tiny, tmp_path):
    wild = replace(R, rate=1e30, epochs=5, schedule="constant")
    for engine in ("fused", "loop"):
        with pytest.raises(ddlib.Diverged, match=r"diverged: the loss of epoch \d is nan.* Try a rate below 1e\+30"):
            train_local(mk("vgg9"), tiny, wild, engine=engine, progress=False)
    point = ddlib.Experiment(tiny, rate=1e30, epochs=5, width=8, batch_size=16)
    with pytest.raises(ddlib.Diverged):
        point.record(tmp_path, progress=False)
    assert not list(tmp_path.glob("*.json"))


def test_one_local_cnn_without_numbers_is_no_answer(tiny):
    p = torch.full((6, 4, 3), 1 / 3)
    p[:, 1] = torch.nan
    for aggregate in (ddlib.average_probability, ddlib.majority_vote, ddlib.geometric_mean):
        with pytest.raises(ValueError, match="NaN\\) for 6 of 6 images"):
            aggregate(p)
    with pytest.raises(ValueError, match="NaN"):
        ddlib.accuracy(p, torch.zeros(6, dtype=torch.int64))
    local = mk("vgg9")
    nn.init.constant_(local.networks[0].head.weight, torch.nan)
    with pytest.raises(ValueError, match="what the LocalCNNs predicts is no number"):
        predict(local, tiny.test)


# ── what a checkpoint belongs to ──


def test_a_second_round_is_not_the_first(tiny, tmp_path):
    model = VGG9(3, 4, 4)
    fresh = copy.deepcopy(model)
    for name in ("first.pt", "second.pt"):
        fit(model, tiny, R, checkpoint=tmp_path / name, progress=False)
    with pytest.raises(ValueError, match="of other initial weights"):
        fit(fresh, tiny, R, checkpoint=tmp_path / "second.pt", progress=False)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = mk("vgg9"), LocalCNNs("vgg9", DEC, in_channels=3, num_classes=4, width=8)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.a(x) + self.b(x)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.NAdam, torch.optim.Adagrad])
def test_two_sets_of_local_cnns_and_any_optimiser_go_on(tiny, tmp_path, kind):
    own = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    recipe = replace(R, optimizer=lambda groups, rate: kind(groups, 0.1 * rate, **own))
    whole = Two()
    model = copy.deepcopy(whole)

    def stop(row):
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    fit(whole, tiny, recipe, progress=False)
    with suppress(KeyboardInterrupt):
        fit(copy.deepcopy(model), tiny, recipe, checkpoint=tmp_path / "c.pt", after_epoch=stop, progress=False)
    fit(model, tiny, recipe, checkpoint=tmp_path / "c.pt", progress=False)
    assert_same_state(model, whole)


def test_what_a_record_and_an_executor_know_of_a_set_is_all_of_it(tiny):
    other = replace(tiny, train=replace(tiny.train, flip_axes=()))
    assert ddlib.Experiment(tiny).name != ddlib.Experiment(other).name
    data = ddlib.load_dataset("digits")
    assert not replace(data, train=replace(data.train, flip_axes=(1,))).by_name


# ── independence ──


def test_any_loss_is_each_networks_own_also_when_fused(tiny):
    hardest = lambda z, y: F.cross_entropy(z, y, reduction="none").topk(4).values.mean()  # noqa: E731
    local, results = mk("vgg9"), []
    for engine in ("fused", "loop"):
        results.append(copy.deepcopy(local).double())
        train_local(results[-1], tiny, R, engine=engine, loss=hardest, progress=False)
    assert_same_state(*results, tolerance=1e-8)


def test_weights_in_common_and_splits_in_common_are_refused(tiny):
    net, trunk = small_net(3, 4, 8, 2), nn.Conv2d(3, 8, 3)
    with pytest.raises(ValueError, match="two local CNNs have the same module or weight"):
        mk(lambda **_: net)
    with pytest.raises(ValueError, match=r"have the same module or weight, 0\.weight"):
        mk(lambda **_: nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)))
    with pytest.raises(ValueError, match="per_task must be 1"), ThreadPoolExecutor(1) as pool:
        train_local(mk("vgg9"), ddlib.channels.shares(tiny.train, 4), R, engine=pool, per_task=2)
    local = mk("vgg9")
    local.networks[0].head = nn.Linear(16 * 4, 16)
    with pytest.raises(ValueError, match=r"lets its groups see one another|cannot be taken apart"):
        train_local(local, tiny, R, progress=False)


def test_what_is_left_out_of_a_state_dict_comes_back_too(tiny):
    local = mk(dropping)

    def count(module, *_):
        module.seen += 1

    for net in local.networks:
        net.register_buffer("seen", torch.zeros(1), persistent=False)
        net.register_forward_hook(count)
    train_local(local, tiny, R, engine="loop", progress=False)
    assert [net.seen.item() for net in local.networks] == [8.0] * 4


# ── habits ──


@pytest.mark.parametrize("interrupt", [True, False])
def test_a_cell_that_is_run_again_goes_on_from_its_checkpoint(tiny, tmp_path, interrupt):
    """After its end, or an interruption in the midst of an epoch, with the same model."""
    expected, model, path = mk("vgg9"), mk("vgg9"), tmp_path / "c.pt"
    history = train_local(expected, tiny, R, progress=False)

    def stop(row):
        if interrupt and row["epoch"] == 1:
            nn.init.ones_(model.networks[0].head.weight)  # half-trained weights of an epoch that was not finished
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        fit(model, tiny, R, checkpoint=path, after_epoch=stop, progress=False)
    again = fit(model, tiny, R, checkpoint=path, progress=False)
    assert again["loss"].tolist() == history["loss"].tolist()
    assert_same_state(model, expected)
    nn.init.ones_(model.networks[0].head.weight)  # weights of one's own: another training
    with pytest.raises(ValueError, match="of other initial weights"):
        fit(model, tiny, R, checkpoint=path, progress=False)


def test_a_checkpoint_of_a_compiled_model_is_read_by_the_plain_one(tiny, tmp_path):
    model = CNNDNN(mk("vgg9"), DenseAggregator(4, 4))
    plain = copy.deepcopy(model)
    fit(torch.compile(model, backend="eager"), tiny, R, checkpoint=tmp_path / "c.pt", progress=False)
    fit(plain, tiny, R, checkpoint=tmp_path / "c.pt", progress=False)
    assert_same_state(plain, model)


def test_numbers_of_numpy_are_numbers():
    given = Recipe(np.int64(2), np.int32(16), "sgd", np.float64(0.05), momentum=np.float32(0.5), augment=np.bool_(True))
    assert given == Recipe(2, 16, "sgd", 0.05, momentum=0.5)
    assert {type(v) for v in given.described().values()} <= {int, float, str, bool}


def test_what_cannot_be_used_is_told(tiny):
    loader = torch.utils.data.DataLoader(tiny.train)
    with pytest.raises(ValueError, match=r"fit takes an ImageSet or a Split, .* got DataLoader"):
        fit(mk("vgg9"), loader)
    with pytest.raises(ValueError, match="a metric cannot be called 'loss'"):
        fit(mk("vgg9"), tiny, R, metrics={"loss": lambda m: 0.0})
    with pytest.raises(ValueError, match=r"a loss must return a scalar tensor .* got \(16,\)"):
        fit(VGG9(3, 4, 4), tiny, R, loss=lambda z, y: F.cross_entropy(z, y, reduction="none"), progress=False)
    with pytest.raises(ValueError, match="augment must return uint8 images"):
        fit(VGG9(3, 4, 4), tiny, replace(R, augment=lambda x, g: x.float()), progress=False)


class Spared(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.position = small_net(3, 4, 4, 2), nn.Parameter(torch.zeros(3, 12, 12))

    def no_weight_decay(self):
        return {"position"}

    def forward(self, x):
        return self.net(x + self.position)


def test_what_a_model_spares_is_not_decayed():
    from ddlib._internal.optimizers import make_optimizer

    model = nn.Sequential(Spared())
    decayed, spared = make_optimizer(model, R).param_groups
    assert any(p is model[0].position for p in spared["params"])
    assert all(p.ndim > 1 for p in decayed["params"])


def test_many_local_cnns_in_processes_need_few_files(tiny):
    """Each tensor would take up a file descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
        local = LocalCNNs("resnet20", Decomposition.grid((12, 12), 3), in_channels=3, num_classes=4, width=6)
        with process_pool(1) as pool:
            train_local(local, tiny, replace(R, epochs=1, batch_size=32), engine=pool, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ── what one asks first ──


def test_images_alone_are_predicted_as_those_of_the_split(tiny):
    model = mk("vgg9")
    with pytest.raises(ValueError, match="images alone can be predicted by a model that `fit` has trained"):
        predict(model, tiny.test.images)
    train_local(model, tiny, R, engine="loop", progress=False)
    whole = CNNDNN(model, DenseAggregator(4, 4))
    for images in (tiny.test.images, tiny):
        assert torch.equal(predict(whole, images), predict(whole, tiny.test))
    for channels in (1, 4):
        with pytest.raises(ValueError, match=rf"\(n, 3, \*shape\), as in training, got .*\(32, {channels}, 12, 12\)"):
            predict(whole, tiny.test.images[:, :1].expand(-1, channels, -1, -1))
    z = predict(whole, tiny.test, logits=True)
    torch.testing.assert_close(z.softmax(-1), predict(whole, tiny.test))


def test_a_logger_stops_a_training_on_held_out_images(tiny):
    data, rows = tiny.hold_out(0.25, seed=1), []
    assert len(data.train) + len(data.test) == len(tiny.train)

    def log(row):
        rows.append(row)
        return row["held_out"] >= 0 and len(rows) == 2

    metric = {"held_out": lambda m: ddlib.accuracy(predict(m, data.test), data.test.labels)}
    history = fit(VGG9(3, 4, 4), data, replace(R, epochs=5), metrics=metric, after_epoch=log, progress=False)
    assert history.to_dict("records") == rows
    assert len(rows) == 2


def test_a_training_that_was_stopped_stays_so_and_belongs_to_its_loss(tiny, tmp_path):
    model, given = mk("vgg9"), {"checkpoint": tmp_path / "c.pt", "progress": False}
    stop = {"after_epoch": lambda row: row["epoch"] == 2}
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    assert len(fit(model, tiny, replace(R, epochs=5), loss=loss, **stop, **given)) == 2
    assert len(fit(model, tiny, replace(R, epochs=5), loss=loss, **given)) == 2
    with pytest.raises(ValueError, match=r"its recipe has loss '.*CrossEntropyLoss.+', not None"):
        fit(mk("vgg9"), tiny, replace(R, epochs=5), **given)


def test_a_loss_an_augmentation_an_optimiser_and_a_schedule_of_ones_own(tiny):
    """Each gives what the library's own gives when it does the same."""
    own = replace(
        R,
        optimizer=lambda groups, rate: torch.optim.SGD(groups, rate, momentum=0.9, nesterov=True, fused=True),
        schedule=lambda t: 1.0,
        augment=lambda x, generator: x,
    )
    theirs = replace(R, schedule="constant", augment=False)
    a, b = mk("vgg9"), mk("vgg9")
    fit(a, tiny, own, loss=lambda z, y: F.cross_entropy(z, y), progress=False)
    fit(b, tiny, theirs, progress=False)
    assert_same_state(a, b)


def test_an_experiment_takes_objects_and_gives_its_model(tiny, tmp_path):
    small = {"epochs": 1, "batch_size": 16, "width": 8}
    point = ddlib.Experiment(tiny, small_net, **small, class_weights="balanced", validation=0.25)
    frame = point.run(tmp_path, progress=False)
    assert set(frame["dataset"]) == {"made up"}
    assert set(frame["backbone"]) == {"helpers.small_net"}
    data = point.data()
    assert len(data.test) == 16
    model = point.model("transfer", tmp_path, progress=False)
    found = ddlib.accuracy(predict(model, data.test), data.test.labels)
    assert found == frame.set_index("strategy")["test_accuracy"]["transfer"]
    with pytest.raises(ValueError, match=r"a record cannot know .*lambda.* again"):
        ddlib.Experiment(tiny, lambda **size: small_net(**size))


def test_a_split_is_a_dataset(tiny):
    images, labels = next(iter(torch.utils.data.DataLoader(tiny.train, batch_size=8)))
    assert torch.equal(images, tiny.train.images[:8])
    assert torch.equal(labels, tiny.train.labels[:8])


@pytest.mark.parametrize("engine", ["fused", "loop"])
def test_a_model_stays_where_it_was_put(tiny, engine):
    local = mk("vgg9")
    train_local(local, tiny, replace(R, device=torch.device("cpu")), engine=engine, progress=False)
    assert next(local.parameters()).device == torch.device("cpu")
    with pytest.raises(ValueError, match="device 'cuda:1' is not there"):
        train_local(local, tiny, replace(R, device="cuda:1"), engine=engine, progress=False)


class OfTorch(torch.utils.data.Dataset):
    """Pillow's images, as torchvision's sets give them, or what `change` makes of (image, label)."""

    classes = ("a", "b")

    def __init__(self, size, change=lambda image, label, index: (image, label)):
        self.size, self.change = size, change

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index >= self.size:
            raise IndexError
        array = np.full((8, 6, 3), 10 * index, np.uint8)
        return self.change(Image.fromarray(array), index % 2, index)


def test_a_dataset_of_torch_is_an_image_set(tiny):
    data = ddlib.image_set("mine", OfTorch(6), OfTorch(2))
    assert (data.classes, data.channels, data.image_shape) == (("a", "b"), 3, (8, 6))
    assert data.train.images[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    floats = OfTorch(
        6, lambda image, label, _: (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255, np.int64(label))
    )
    assert torch.equal(ddlib.image_set("mine", floats, OfTorch(2)).train.images, data.train.images)
    pairs = torch.utils.data.TensorDataset(data.train.images, data.train.labels)
    assert torch.equal(ddlib.image_set("mine", pairs, data.test).train.images, data.train.images)


@pytest.mark.parametrize(("mode", "level"), [("P", [200, 100, 50]), ("1", [255])])
def test_pictures_with_a_palette_are_read_in_its_colours(mode, level):
    def change(image, label, index):
        picture = Image.new(mode, (6, 8), 1)
        if mode == "P":
            picture.putpalette([0, 0, 0, 200, 100, 50])
        return picture, label

    data = ddlib.image_set("mine", OfTorch(4, change), OfTorch(2, change))
    assert data.test.images[0, :, 3, 3].tolist() == level


class OfOthers(OfTorch):
    classes = ("b", "c")


def test_one_label_does_not_mean_two_classes():
    for given in ({}, {"classes": "ab"}):
        with pytest.raises(ValueError, match=r"the same classes in the same order, got \[\['a', 'b'\], \['b', 'c'\]\]"):
            ddlib.image_set("mine", OfTorch(4), OfOthers(4), **given)


WRONG = {
    "mine train is empty": OfTorch(0),
    "image 3 of mine train has the shape (3, 4, 6), image 0 (3, 8, 6)": OfTorch(
        6, lambda image, label, index: (image.resize((6, 4)) if index == 3 else image, label)
    ),
    "image 0 of mine train must be uint8, or floats from 0 to 1 (no Normalize), got torch.float32": OfTorch(
        6, lambda image, label, _: (torch.randn(3, 8, 6), label)
    ),
    "image 0 of mine train must be uint8, or floats from 0 to 1 (no Normalize), got torch.uint16 (3, 8, 6)": OfTorch(
        6, lambda image, label, _: (np.array(image).astype(np.uint16), label)
    ),
    "the label of image 1 of mine train must be an integer, got 1.4": OfTorch(6, lambda x, y, _: (x, 1.4 * y)),
    "the label of image 1 of mine train must be an integer, got inf": OfTorch(6, lambda x, y, i: (x, [0, np.inf][y])),
    "must give (image, label), image 0 is a Image": OfTorch(6, lambda image, *_: image),
    "the label of image 0 of mine train must be an integer, got 'cat'": OfTorch(6, lambda image, *_: (image, "cat")),
    "the label of image 1 of mine train must be an integer, got 1.5": OfTorch(
        6, lambda image, label, index: (image, label + index / 2)
    ),
    "the label of image 0 of mine train must be an integer, got inf": OfTorch(6, lambda image, *_: (image, np.inf)),
    "mine train must be (images, labels), or a map-style Dataset of (image, label), got int": 3,
}


@pytest.mark.parametrize("message", WRONG)
def test_a_dataset_that_cannot_be_trained_on_is_told(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ddlib.image_set("mine", WRONG[message], OfTorch(2))
