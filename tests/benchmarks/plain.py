"""What one would use in place of ddlib, in plain PyTorch, as carefully as its users would write it, and in Lightning.

Images lie in memory and are augmented by one gather a batch; optimisers are fused.  `alternatives.py` times them.
"""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from engines import loaders
from torch import Tensor, nn
from torch.nn import functional as F

from ddlib import LocalCNNs, Split
from ddlib.cost.training_time import Setting
from ddlib.networks.backbones import GroupedLinear

K = 10  # classes


class Norm(nn.BatchNorm2d):
    """In fp32, as autocast has it outside of `vmap`, where a bf16 input would be an error."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def vgg9(width: int, groups: int = 1, norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    """VGG9 of PyTorch's own layers; `groups` of them side by side, as HFTA fuses them."""
    layers, channels = [], 3
    for factor, count in ((1, 2), (2, 2), (4, 3)):
        for _ in range(count):
            sizes, channels = (channels * groups, factor * width * groups), factor * width
            conv = nn.Conv2d(*sizes, 3, padding=1, groups=groups, bias=False)
            layers += [conv, norm(sizes[1]), nn.ReLU(inplace=True)]
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), GroupedLinear(channels, K, groups))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)


def batches(split: Split, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch of images, mirrored and shifted by up to an eighth: one gather a batch, which is channels-last."""
    side = split.images.shape[-1]
    padded = F.pad(split.images, [side // 8] * 4).permute(0, 2, 3, 1).contiguous()
    place, mean, std = torch.arange(side), split.mean.view(-1, 1, 1), split.std.view(-1, 1, 1)
    for chosen in torch.randperm(len(split))[: len(split) // size * size].view(-1, size):
        rows, columns = (place + torch.randint(side // 4 + 1, (size, 1)) for _ in range(2))
        columns = torch.where(torch.rand(size, 1) < 0.5, columns.flip(1), columns)
        x = padded[chosen[:, None, None], rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)
        yield (x.float() / 255 - mean) / std, split.labels[chosen]


Step = Callable[[Tensor, Tensor], None]


def stepping(loss: Callable[[Tensor, Tensor], Tensor], parameters: Any, fast: bool) -> Step:
    """A step of SGD; `fast`: in bf16."""
    optimizer = sgd(parameters)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            value = loss(x, y)
        value.backward()
        optimizer.step()

    return step


def single(width: int, fast: bool, window: Any = (slice(None),) * 2) -> Step:
    """One network on its window: as PyTorch has it, or in bf16 and channels-last."""
    layout = torch.channels_last if fast else torch.contiguous_format
    net = vgg9(width).to(memory_format=layout)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x[(..., *window)].contiguous(memory_format=layout)).float(), y)

    return stepping(loss, net.parameters(), fast)


def one_by_one(local: LocalCNNs, fast: bool) -> Step:
    steps = [single(width_of(local), fast, window) for window in local.decomposition.windows]
    return lambda x, y: [step(x, y) for step in steps]


def vmapped(local: LocalCNNs, fast: bool) -> Step:
    """`torch.func.vmap` over stacked networks.

    Buffers are stacked and mapped as the weights are, so that batch norm may update its statistics in place.
    """
    nets = [vgg9(width_of(local), norm=Norm) for _ in local.decomposition.windows]
    parameters, buffers = torch.func.stack_module_state(nets)
    base = copy.deepcopy(nets[0]).to("meta")

    def one(own: dict, kept: dict, window: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(base, (own, kept), (window,)).float(), y)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        windows = torch.stack(local.decomposition.cut(x))
        return torch.func.vmap(one, (0, 0, 0, None))(parameters, buffers, windows, y).sum()

    return stepping(loss, parameters.values(), fast)


def grouped(local: LocalCNNs, fast: bool) -> Step:
    """HFTA's way: one network of grouped convolutions, the sum of all losses."""
    layout, n = torch.channels_last if fast else torch.contiguous_format, len(local)
    net = vgg9(width_of(local), n).to(memory_format=layout)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        windows = torch.cat(local.decomposition.cut(x), 1).contiguous(memory_format=layout)
        return n * F.cross_entropy(net(windows).float().view(-1, K), y.repeat_interleave(n))

    return stepping(loss, net.parameters(), fast)


def width_of(local: LocalCNNs) -> int:
    return local.subnet(0).width


def lightning(s: Setting, fast: bool) -> Callable[[], None]:
    """An epoch of Lightning's Trainer, images from a `DataLoader` with two workers and torchvision's transforms."""
    import lightning.pytorch as pl

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

    class Classifier(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = vgg9(s.width).to(memory_format=torch.channels_last if fast else torch.contiguous_format)

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self.parameters())

    module, (loader,) = Classifier(), loaders(s.data(), [(slice(None),) * 2], s.batch_size)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options = {"accelerator": "cpu", "devices": 1, "precision": "bf16-mixed" if fast else "32-true", **quiet}
    return lambda: pl.Trainer(max_epochs=1, **options).fit(module, loader)
