"""The N local CNNs as one module."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .backbones import Backbone, Builder, build, groupable
from .decomposition import Decomposition


class LocalCNNs(nn.Module):
    """One small CNN for each window of a decomposition (P1, P2), independent of one another.

    Windows of equal shape share one grouped network; unequal ones fall into families of equal ones.  Each local
    CNN has the structure of the global one and width `width / sqrt(N)`, rounded, so that all N together have
    about its parameters (P1: proportionally fewer parameters; the rule is ours).

    Args:
        backbone: a name, or a callable that builds a module (`backbones.build`).
        decomposition: the windows.
        width: width of the *global* CNN.
        local_width: of each local CNN, where the rule is another: for the sub-networks of P3, say.
    """

    def __init__(
        self,
        backbone: str | Builder,
        decomposition: Decomposition,
        *,
        in_channels: int,
        num_classes: int,
        width: int,
        local_width: int | None = None,
    ):
        super().__init__()
        self.backbone, self.decomposition = backbone, decomposition
        self.in_channels, self.num_classes, self.width = in_channels, num_classes, width
        self.local_width = local_width or max(1, round(width / math.sqrt(len(decomposition))))
        grouped = groupable(backbone)
        self._families = decomposition.families() if grouped else [[i] for i in range(len(decomposition))]
        self.networks = nn.ModuleList(self._build(len(family) if grouped else 1) for family in self._families)

    def _build(self, groups: int) -> nn.Module:
        dims = len(self.decomposition.image_shape)
        return build(self.backbone, self.in_channels, self.num_classes, self.local_width, dims, groups)

    def __len__(self) -> int:
        return len(self.decomposition)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, *image_shape) → logits (B, N, K).

        Or images of each local CNN's own, (B, N, C, *image_shape): see `channels.shares`.
        """
        if x.ndim == len(self.decomposition.image_shape) + 2:
            windows = self.decomposition.cut(x)
        else:
            own = zip(x.unbind(1), self.decomposition.windows, strict=True)
            windows = [image[(..., *window)] for image, window in own]
        logits = []
        for family, network in zip(self._families, self.networks, strict=True):
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
        if isinstance(network, Backbone):
            return network.single(group)
        return self._copy_into(self._build(1), network)

    def load_subnet(self, index: int, module: nn.Module) -> None:
        """Put the weights of a stand-alone module back as local CNN `index`."""
        network, group = self._place(index)
        if isinstance(network, Backbone):
            network.load_single(group, module)
        else:
            self._copy_into(network, module)

    def part(self, indices: Sequence[int]) -> "LocalCNNs":
        """The local CNNs `indices` alone, on whole images, with their own copies of the weights.

        What one worker trains, or one rank holds.
        """
        few = LocalCNNs.__new__(LocalCNNs)
        nn.Module.__init__(few)
        few.backbone, few.decomposition = self.backbone, self.decomposition.subset(indices)
        few.in_channels, few.num_classes, few.width = self.in_channels, self.num_classes, self.width
        few.local_width = self.local_width
        grouped = groupable(self.backbone)
        few._families = few.decomposition.families() if grouped else [[i] for i in range(len(few))]
        with torch.random.fork_rng(devices=[]):
            few.networks = nn.ModuleList(few._build(len(family)) for family in few._families)
        first = next(self.parameters())
        few.to(device=first.device, dtype=first.dtype).train(self.training)
        for own, index in enumerate(indices):
            few.load_subnet(own, self.subnet(index))
        return few

    def load_part(self, indices: Sequence[int], part: "LocalCNNs") -> None:
        """Put the weights of `part(indices)` back."""
        for own, index in enumerate(indices):
            self.load_subnet(index, part.subnet(own))

    def _place(self, index: int) -> tuple[nn.Module, int]:
        for family, network in zip(self._families, self.networks, strict=True):
            if index in family:
                return network, family.index(index)
        raise IndexError(f"there are local CNNs 0 to {len(self) - 1}, got {index}.")

    def _order(self) -> list[int]:
        flat = [i for family in self._families for i in family]
        return [flat.index(i) for i in range(len(flat))]

    @staticmethod
    def _copy_into(target: nn.Module, source: nn.Module) -> nn.Module:
        first = next(source.parameters())
        target.to(device=first.device, dtype=first.dtype).load_state_dict(source.state_dict())
        return target.train(source.training)


def softmax(logits: Tensor) -> Tensor:
    """Softmax over the last axis, in at least single precision."""
    return torch.softmax(logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits, -1)
