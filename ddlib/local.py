"""The N local CNNs as one module."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import checks
from .backbones import Backbone, Builder, build, groupable
from .decomposition import Decomposition


class LocalCNNs(nn.Module):
    """One small CNN for each window of a decomposition (P1, P2), independent of one another.

    Windows of equal shape share one grouped network; unequal ones fall into families of equal ones.  Each local
    CNN has the structure of the global one.

    Args:
        backbone: a name, or a callable that builds a module (`backbones.build`).
        decomposition: the windows.
        width: width of the *global* CNN.
        local_width: of each local CNN.  "proportional" is `width / sqrt(N)`, rounded, so that all N together have
            about the parameters of the global CNN (P1: proportionally fewer parameters; the rule is ours, and a coarse
            window does not count); "full" is `width`; or a number, for the sub-networks of P3, say.
    """

    def __init__(
        self,
        backbone: str | Builder,
        decomposition: Decomposition,
        *,
        in_channels: int,
        num_classes: int,
        width: int,
        local_width: str | int = "proportional",
    ):
        super().__init__()
        self.backbone, self.decomposition = backbone, decomposition
        self.in_channels, self.num_classes, self.width = in_channels, num_classes, width
        self.local_width = width_of_each(local_width, width, len(decomposition) - (decomposition.coarse is not None))
        self.families = decomposition.families() if groupable(backbone) else [[i] for i in range(len(decomposition))]
        self.networks = nn.ModuleList(self._build(len(family)) for family in self.families)

    def _build(self, groups: int) -> nn.Module:
        dims = len(self.decomposition.image_shape)
        return build(self.backbone, self.in_channels, self.num_classes, self.local_width, dims, groups)

    def __len__(self) -> int:
        return len(self.decomposition)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, *image_shape) → logits (B, N, K).

        Or images of each local CNN's own, (B, N, C, *image_shape): see `channels.shares`.
        """
        dims = len(self.decomposition.image_shape)
        if x.ndim == dims + 2:
            windows = self.decomposition.cut(x)
        elif x.ndim != dims + 3:
            raise ValueError(f"images must be a batch (B, C, *image_shape) of {dims} axes each, got {tuple(x.shape)}.")
        else:
            own = zip(x.unbind(1), self.decomposition.windows, strict=True)
            windows = [image[(..., *window)] for image, window in own]
        logits = []
        for family, network in zip(self.families, self.networks, strict=True):
            together = torch.cat([windows[i] for i in family], 1) if len(family) > 1 else windows[family[0]]
            logits.append(network(together).unflatten(1, (len(family), -1)))  # (B, family, K)
        if len(logits) == 1:
            return logits[0]
        return torch.cat(logits, 1)[:, self._order()]

    def probabilities(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, *image_shape) → local class distributions (B, N, K)."""
        return softmax(self(x))

    def subnet(self, index: int) -> nn.Module:
        """Local CNN `index` as a plain, stand-alone module on its window, with its own copy of the weights."""
        network, group = self._place(index)
        return network.single(group) if isinstance(network, Backbone) else copy.deepcopy(network)

    def load_subnet(self, index: int, module: nn.Module) -> None:
        """Put the weights of a stand-alone module back as local CNN `index`."""
        network, group = self._place(index)
        if isinstance(network, Backbone):
            network.load_single(group, module)
        else:
            network.load_state_dict(module.state_dict())

    def part(self, indices: Sequence[int]) -> "LocalCNNs":
        """The local CNNs `indices` alone, on whole images, with their own copies of the weights.

        What one worker trains, or one rank holds.
        """
        size = {"in_channels": self.in_channels, "num_classes": self.num_classes, "width": self.width}
        with torch.random.fork_rng(devices=[]):
            few = LocalCNNs(self.backbone, self.decomposition.subset(indices), **size, local_width=self.local_width)
        first = next(self.parameters())
        few.to(device=first.device, dtype=first.dtype).train(self.training)
        for own, index in enumerate(indices):
            few.load_subnet(own, self.subnet(index))
        return few

    def load_part(self, indices: Sequence[int], part: "LocalCNNs") -> None:
        """Put the weights of `part(indices)` back."""
        for own, index in enumerate(indices):
            self.load_subnet(index, part.subnet(own))

    def get_extra_state(self) -> Tensor:
        """The windows are part of the state: weights for other windows mean nothing."""
        averaged = [tuple((0, length) for length in self.decomposition.coarse)] if self.decomposition.coarse else []
        return torch.tensor([*self.decomposition.bounds, *averaged])

    def set_extra_state(self, state: Tensor) -> None:
        if not torch.equal(state.cpu(), self.get_extra_state()):
            raise ValueError(f"these weights belong to windows {state.tolist()}, not to {self.decomposition!r}.")

    def _place(self, index: int) -> tuple[nn.Module, int]:
        for family, network in zip(self.families, self.networks, strict=True):
            if index in family:
                return network, family.index(index)
        raise IndexError(f"there are local CNNs 0 to {len(self) - 1}, got {index}.")

    def _order(self) -> list[int]:
        flat = [i for family in self.families for i in family]
        return [flat.index(i) for i in range(len(flat))]


def width_of_each(rule: str | int, width: int, number: int) -> int:
    """Width of one of `number` local CNNs: by a rule, see `LocalCNNs`, or a number.

    Raises:
        ValueError: an unknown rule, or a number below 1.
    """
    if not isinstance(rule, str):
        return checks.whole("local_width", rule, 1)
    rules = {"proportional": max(1, round(width / math.sqrt(number))), "full": width}
    return rules[checks.one_of("local_width", rule, rules)]


def softmax(logits: Tensor) -> Tensor:
    """Softmax over the last axis, in at least single precision."""
    return torch.softmax(logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits, -1)
