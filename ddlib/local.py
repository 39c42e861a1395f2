"""The N local CNNs as one module."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ._internal import checks
from ._internal.devices import side_by_side
from ._internal.losses import at_least_single
from .decomposition import Decomposition
from .networks.backbones import Backbone, Builder, build, fill, groupable, tensors
from .networks.own import check_groups


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
        self.in_channels, self.num_classes, self.width = in_channels, num_classes, checks.integer("width", width, 1)
        self.local_width = width_of_each(local_width, self.width, decomposition.num_subdomains)
        self.families = self._families(decomposition)
        self.networks = nn.ModuleList(self._build(family) for family in self.families)
        self.check_independent()

    def check_independent(self) -> None:
        """Are the local CNNs independent of one another?  Asked when they are built, and before they are trained.

        Raises:
            ValueError: two have a weight in common that is trained, or see one another's windows.
        """
        owner: dict[int, int] = {}
        for index, network in enumerate(self.networks):
            for name, p in network.named_parameters():
                if owner.setdefault(id(p), index) != index and p.requires_grad:
                    raise ValueError(f"two local CNNs have the same module or weight, {name}: each needs its own.")
            shape, what = self.decomposition.window_shapes[self.families[index][0]], type(network).__name__
            check_groups(network, self.in_channels, shape, f"the {what}")

    def _families(self, windows: Decomposition) -> list[list[int]]:
        return windows.families() if groupable(self.backbone) else [[i] for i in range(len(windows))]

    def _build(self, family: list[int]) -> nn.Module:
        shape = self.decomposition.window_shapes[family[0]]
        size = (self.in_channels, self.num_classes, self.local_width, len(shape), len(family))
        return build(self.backbone, *size, window_shape=shape)

    def __len__(self) -> int:
        return len(self.decomposition)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, *image_shape) → logits (B, N, K)."""
        dims = len(self.decomposition.image_shape)
        if x.ndim != dims + 2:
            raise ValueError(f"images must be a batch (B, C, *image_shape) of {dims} axes each, got {tuple(x.shape)}.")
        windows = self.decomposition.cut(x)
        inputs = [torch.cat([windows[i] for i in f], 1) if len(f) > 1 else windows[f[0]] for f in self.families]
        found = zip(self.families, side_by_side(self.networks, inputs), strict=True)
        logits = [each.unflatten(1, (len(family), -1)) for family, each in found]  # (B, family, K)
        if len(logits) == 1:
            return logits[0]
        each = torch.cat(logits, 1).unbind(1)
        return torch.stack([each[place] for place in self._order()], 1)

    def probabilities(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, *image_shape) → local class distributions (B, N, K)."""
        return softmax(self(x))

    def subnet(self, index: int) -> nn.Module:
        """Local CNN `index` as a plain, stand-alone module on its window: a copy of all that it is."""
        network, group = self._network_of(index)
        return network.take([group]) if isinstance(network, Backbone) else copy.deepcopy(network)

    def load_subnet(self, index: int, module: nn.Module) -> None:
        """Put the weights of a stand-alone module back as local CNN `index`."""
        network, group = self._network_of(index)
        if isinstance(network, Backbone):
            network.load_single(group, module)
        else:
            fill(module, tensors(network))

    def part(self, indices: Sequence[int], apart: bool = False) -> "LocalCNNs":
        """The local CNNs `indices` alone, on whole images, as copies of all that they are.

        What one worker trains, or one rank holds.  With `apart`, none is grouped with others.
        """
        few = copy.copy(self)
        few.__dict__ |= {key: copy.copy(value) for key, value in vars(self).items() if isinstance(value, dict)}
        few.decomposition = self.decomposition.subset(indices)
        few.families = [[i] for i in range(len(indices))] if apart else self._families(few.decomposition)
        few.networks = nn.ModuleList(self._copies([indices[own] for own in family]) for family in few.families)
        return few

    def _copies(self, indices: Sequence[int]) -> nn.Module:
        """Copies of local CNNs on windows of equal shape, as one network."""
        network, _ = self._network_of(indices[0])
        if not isinstance(network, Backbone):
            return copy.deepcopy(network)
        return network.take([self._network_of(index)[1] for index in indices])

    def load_part(self, indices: Sequence[int], part: "LocalCNNs") -> None:
        """Put the weights of `part(indices)` back."""
        for own, index in enumerate(indices):
            self.load_subnet(index, part.subnet(own))

    def named_networks(self) -> list[tuple[list[str], nn.Module]]:
        """Each network, and what the local CNNs side by side in it are called in a checkpoint."""
        names = self.decomposition.names
        families = [[f"local CNN {names[index]}, " for index in family] for family in self.families]
        return list(zip(families, self.networks, strict=True))

    def get_extra_state(self) -> Tensor:
        """The windows are part of the state: weights for other windows mean nothing."""
        averaged = [tuple((0, length) for length in self.decomposition.coarse)] if self.decomposition.coarse else []
        return torch.tensor([*self.decomposition.bounds, *averaged])

    def set_extra_state(self, state: Tensor) -> None:
        if not torch.equal(state.cpu(), self.get_extra_state()):
            raise ValueError(f"these weights belong to windows {state.tolist()}, not to {self.decomposition!r}.")

    def _network_of(self, index: int) -> tuple[nn.Module, int]:
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
        return checks.integer("local_width", rule, 1)
    rules = {"proportional": max(1, round(width / math.sqrt(number))), "full": width}
    return rules[checks.one_of("local_width", rule, rules)]


def softmax(logits: Tensor) -> Tensor:
    """Softmax over the last axis, in at least single precision."""
    return torch.softmax(at_least_single(logits), -1)
