"""The networks: VGG9, ResNet20/32, MobileNetV2 and a 3-D CNN, each with a width and a number of groups.

With `groups=G` a backbone is G independent networks side by side: its input is (B, G·C, *window), group g in
channels gC … (g+1)C, its output (B, G·K), and every convolution is grouped.  All parameters and buffers then
have their groups along the first axis, so that one network is a slice of every tensor (`Backbone.take`).
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._internal import checks
from .convolution import CONV
from .own import checked
from .plain import PlainVGG9

# What a layer's sizes are called, that a number of groups multiplies.
_SIZES = ("groups", "in_channels", "out_channels", "num_features", "num_channels", "num_groups", "num_parameters")
_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


class GroupedLinear(nn.Module):
    """G linear layers side by side: (B, G·in) → (B, G·out); with one group, `nn.Linear`."""

    def __init__(self, in_features: int, out_features: int, groups: int = 1):
        super().__init__()
        self.groups = groups
        one = nn.Linear(in_features, out_features)
        self.weight = nn.Parameter(one.weight.detach().repeat(groups, 1))  # (G·out, in)
        self.bias = nn.Parameter(one.bias.detach().repeat(groups))  # (G·out,)

    def forward(self, x: Tensor) -> Tensor:
        if self.groups == 1:
            return F.linear(x, self.weight, self.bias)
        x = x.unflatten(1, (self.groups, -1)).transpose(0, 1)  # (G, B, in)
        weight = self.weight.unflatten(0, (self.groups, -1)).transpose(1, 2)  # (G, in, out)
        return torch.bmm(x, weight).transpose(0, 1).flatten(1) + self.bias


class Backbone(nn.Module):
    """A CNN, or `groups` of them side by side.

    Subclasses build `features` and `head` in `__init__`, of convolutions, batch norms and `GroupedLinear`s, so that
    the rule above holds; images (B, G·C, *window) become logits (B, G·K).
    """

    def __init__(self, in_channels: int, num_classes: int, width: int, dims: int, groups: int):
        super().__init__()
        self.in_channels, self.num_classes, self.width = in_channels, num_classes, width
        self.dims, self.groups = dims, groups

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(2).mean(2))  # global average pooling

    def conv(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, depthwise: bool = False) -> nn.Module:
        """A convolution without bias, padded so that stride 1 keeps the size, in each group.

        It computes what PyTorch's does, small windows by another algorithm: see `convolution`.
        """
        g, blocks = self.groups, self.groups * (inputs if depthwise else 1)
        options = {"stride": stride, "padding": kernel // 2, "groups": blocks, "bias": False}
        layer = CONV[self.dims](inputs * g, outputs * g, kernel, **options)
        nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
        return layer

    def norm(self, channels: int) -> nn.Module:
        return _NORM[self.dims](channels * self.groups)

    def pool(self) -> nn.Module:
        """2×2 max-pool that rounds up, so that a window of any size passes."""
        return _POOL[self.dims](2, ceil_mode=True)

    def classifier(self, features: int) -> nn.Module:
        return GroupedLinear(features, self.num_classes, self.groups)

    def take(self, groups: Sequence[int]) -> "Backbone":
        """Some of the networks, side by side in that order: a copy of all that they are, weights and settings."""
        net = copy.deepcopy(self)
        net.groups = len(groups)
        done: dict[int, nn.Parameter] = {}  # a weight that two layers share stays one
        for name, layer in net.named_modules():
            for size in _SIZES if layer is not net else ():
                if isinstance(value := getattr(layer, size, None), int):
                    setattr(layer, size, value * len(groups) // self.groups or value)
            try:
                for key, p in layer.named_parameters(recurse=False):
                    cut = nn.Parameter(self._cut(p.detach(), groups), p.requires_grad)
                    setattr(layer, key, done.setdefault(id(p), cut))
                for key, buffer in layer.named_buffers(recurse=False):
                    setattr(layer, key, self._cut(buffer, groups))
            except RuntimeError:
                kind = type(layer).__name__
                raise ValueError(
                    f"layer {name!r} ({kind}) of {self.groups} networks side by side cannot be taken apart."
                ) from None
        return net

    def fresh(self, width: int) -> "Backbone":
        """One network of this kind and with these settings, of another width perhaps, with new weights.

        Torch's random state stays.

        Raises:
            ValueError: a layer was replaced, added or hooked since this network was built (it is named).
        """
        with torch.random.fork_rng(devices=[]):
            usual = type(self)(self.in_channels, self.num_classes, self.width, self.dims, self.groups)
            net = type(self)(self.in_channels, self.num_classes, width, self.dims, 1)
        as_built, new = dict(usual.named_modules()), dict(net.named_modules())
        for name, layer in self.named_modules():
            if type(layer) is not type(as_built.get(name)) or name not in new:
                raise ValueError(f"layer {name!r} was replaced by {layer}: there is none like it at width {width}.")
            if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
                raise ValueError(f"layer {name!r} has hooks, which one of width {width} cannot have: remove them.")
            for key, value in vars(layer).items():  # p of a dropout, eps of a norm, a stride
                if isinstance(value, (bool, int, float, str, tuple)) and value != vars(as_built[name]).get(key, value):
                    setattr(new[name], key, value)
        weights = dict(net.named_parameters())
        for name, p in self.named_parameters():
            if name not in weights:
                raise ValueError(f"weight {name!r} was added: there is none like it at width {width}.")
            weights[name].requires_grad_(p.requires_grad)
        like = next(self.parameters())
        return net.to(like.device, like.dtype)

    def load_single(self, group: int, net: nn.Module) -> None:
        """Put the weights of a stand-alone network back into group `group`."""
        own = tensors(self)
        fill(net, {k: v.unflatten(0, (self.groups, -1))[group] if v.ndim else v for k, v in own.items()})

    def _cut(self, value: Tensor, groups: Sequence[int]) -> Tensor:
        if not value.ndim:  # a counter of batches
            return value.clone()
        return value.unflatten(0, (self.groups, -1))[list(groups)].flatten(0, 1)


def tensors(net: nn.Module) -> dict[str, Tensor]:
    """All weights and statistics of a network by name, also those that its `state_dict` leaves out."""
    return {name: t.detach() for name, t in chain(net.named_parameters(), net.named_buffers())}


def fill(source: nn.Module, target: dict[str, Tensor]) -> None:
    """Copy the weights of a network into tensors of these names; all or none.

    Raises:
        ValueError: other names, or another shape.
    """
    given = tensors(source)
    if given.keys() != target.keys():
        other = ", ".join(sorted(given.keys() ^ target.keys())[:3])
        raise ValueError(f"a {type(source).__name__} does not fit: only one of the two has {other}.")
    for name, own in target.items():
        if own.shape != given[name].shape:
            raise ValueError(f"{name} has shape {tuple(given[name].shape)}, {tuple(own.shape)} is needed.")
    for name, own in target.items():
        own.copy_(given[name])


class VGG9(Backbone):
    """3×3 convolutions with batch norm and ReLU: two of width w, two of 2w, three of 4w, max-pool after each."""

    def __init__(self, in_channels: int, num_classes: int, width: int, dims: int = 2, groups: int = 1):
        super().__init__(in_channels, num_classes, width, dims, groups)
        layers, channels = [], in_channels
        for outputs, count in ((width, 2), (2 * width, 2), (4 * width, 3)):
            for layer in range(count):
                layers += [self.conv(channels, outputs), self.norm(outputs)]
                layers += [self.pool()] if layer == count - 1 else []  # before the ReLU: the same, on fewer pixels
                layers += [nn.ReLU(inplace=True)]
                channels = outputs
        self.features = nn.Sequential(*layers)
        self.head = self.classifier(channels)


class _Residual(nn.Module):
    """Two 3×3 convolutions and a shortcut; a 1×1 projection where the shape changes."""

    def __init__(self, net: Backbone, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = net.conv(inputs, outputs, stride=stride), net.norm(outputs)
        self.conv2, self.norm2 = net.conv(outputs, outputs), net.norm(outputs)
        projected = stride != 1 or inputs != outputs
        shortcut = [net.conv(inputs, outputs, 1, stride), net.norm(outputs)] if projected else []
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)), inplace=True)))
        return F.relu(y + self.shortcut(x))


class ResNet(Backbone):
    """Three stages of w, 2w, 4w with `blocks` residual blocks each: depth 6·blocks + 2."""

    blocks: int

    def __init__(self, in_channels: int, num_classes: int, width: int, dims: int = 2, groups: int = 1):
        super().__init__(in_channels, num_classes, width, dims, groups)
        layers, channels = [self.conv(in_channels, width), self.norm(width), nn.ReLU(inplace=True)], width
        for stage, outputs in enumerate((width, 2 * width, 4 * width)):
            for block in range(self.blocks):
                layers.append(_Residual(self, channels, outputs, stride=2 if stage and not block else 1))
                channels = outputs
        self.features = nn.Sequential(*layers)
        self.head = self.classifier(channels)


class ResNet20(ResNet):
    blocks = 3


class ResNet32(ResNet):
    blocks = 5


class CNN3D(Backbone):
    """The 3-D network of the Keras CT example: four of convolution, ReLU, max-pool, batch norm; a dense layer.

    Filters w, w, 2w, 4w (64-64-128-256 in the original), dense layer 8w.  Its convolutions are padded, so that
    thin windows pass, and its dropout is left out, so that every engine computes the same (both ours).
    """

    def __init__(self, in_channels: int, num_classes: int, width: int, dims: int = 3, groups: int = 1):
        if dims != 3:
            raise ValueError(f"backbone 'cnn3d' needs volumes (dims=3), got dims={dims}.")
        super().__init__(in_channels, num_classes, width, dims, groups)
        layers, channels = [], in_channels
        for outputs in (width, width, 2 * width, 4 * width):
            layers += [self.conv(channels, outputs), self.pool(), nn.ReLU(inplace=True), self.norm(outputs)]
            channels = outputs
        self.features = nn.Sequential(*layers)
        self.dense = GroupedLinear(channels, 2 * channels, groups)
        self.head = self.classifier(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.dense(self.features(x).flatten(2).mean(2))))


class _Inverted(nn.Module):
    """Expand by 1×1, filter each channel by 3×3, project by 1×1; a shortcut where the shape stays."""

    def __init__(self, net: Backbone, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        layers = [] if expansion == 1 else [net.conv(inputs, hidden, 1), net.norm(hidden), nn.ReLU6(inplace=True)]
        layers += [net.conv(hidden, hidden, 3, stride, depthwise=True), net.norm(hidden), nn.ReLU6(inplace=True)]
        self.layers = nn.Sequential(*layers, net.conv(hidden, outputs, 1), net.norm(outputs))
        self.keeps = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.keeps else self.layers(x)


class MobileNetV2(Backbone):
    """Sandler et al. 2018, with width 32 that of the original, and strides for small images.

    The first convolution and the second stage keep the size (as is common for CIFAR), and the dropout before the
    classifier is left out, so that every engine computes the same (both ours).
    """

    stages = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, in_channels: int, num_classes: int, width: int, dims: int = 2, groups: int = 1):
        super().__init__(in_channels, num_classes, width, dims, groups)
        layers = [self.conv(in_channels, width), self.norm(width), nn.ReLU6(inplace=True)]
        channels = width
        for expansion, filters, count, stride in self.stages:
            outputs = max(1, round(filters * width / 32))
            for block in range(count):
                layers.append(_Inverted(self, channels, outputs, 1 if block else stride, expansion))
                channels = outputs
        last = 40 * width
        self.features = nn.Sequential(*layers, self.conv(channels, last, 1), self.norm(last), nn.ReLU6(inplace=True))
        self.head = self.classifier(last)


Builder = Callable[..., nn.Module]

# Add one's own here: a subclass of `Backbone` can be grouped, any other callable is trained one by one.
BACKBONES: dict[str, type[Backbone] | Builder] = {
    "vgg9": VGG9,
    "resnet20": ResNet20,
    "resnet32": ResNet32,
    "mobilenet_v2": MobileNetV2,
    "cnn3d": CNN3D,
    "vgg9_plain": PlainVGG9,
}


def groupable(name: str | Builder) -> bool:
    """Whether several networks of this kind can be one grouped module: subclasses of `Backbone`, by name or as such."""
    kind = BACKBONES.get(name) if isinstance(name, str) else name
    return isinstance(kind, type) and issubclass(kind, Backbone)


def build(
    name: str | Builder,
    in_channels: int,
    num_classes: int,
    width: int,
    dims: int = 2,
    groups: int = 1,
    window_shape: Sequence[int] | None = None,
) -> nn.Module:
    """A CNN of the given width, the channels of its first block; `groups` of them side by side.

    The weights come from torch's global random state, network after network: a group starts from the very
    weights that as many single networks would, built in the same order.

    Args:
        name: a key of `BACKBONES`, a subclass of `Backbone`, or any callable `f(in_channels=, num_classes=, width=,
            dims=)` that returns an `nn.Module` from images (B, C, *window) to logits (B, K), which cannot be
            grouped; it may take `window_shape=` as well.
        window_shape: pixels for each axis that the network will see; what comes out of one's own is then checked.

    Raises:
        ValueError: an unknown name (the nearest is named), a number out of range, or a network of one's own that is
            none, or whose groups are not independent.
    """
    spec = dict(
        in_channels=checks.integer("in_channels", in_channels, 1),
        num_classes=checks.integer("num_classes", num_classes, 2),
        width=checks.integer("width", width, 1),
        dims=checks.integer("dims", dims, 2, 3),
    )
    kind = name if callable(name) else BACKBONES[checks.one_of("backbone", name, BACKBONES)]
    if not groupable(name):
        if groups != 1:
            raise ValueError(f"{name!r} cannot be grouped; only {', '.join(filter(groupable, BACKBONES))} can.")
        takes = inspect.signature(kind).parameters
        given = {"window_shape": tuple(window_shape)} if window_shape and "window_shape" in takes else {}
        return checked(kind(**spec, **given), name, in_channels, num_classes, 1, window_shape)
    if checks.integer("groups", groups, 1) == 1:
        return checked(kind(**spec, groups=1), name, in_channels, num_classes, 1, window_shape)
    with torch.random.fork_rng(devices=[]):
        together = kind(**spec, groups=groups)
    for group in range(groups):
        together.load_single(group, kind(**spec, groups=1))
    return checked(together, name, in_channels, num_classes, groups, window_shape)


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters of a model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
