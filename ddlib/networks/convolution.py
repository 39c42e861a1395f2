"""The convolution of small windows, and the way round oneDNN's wrong bf16 gradients."""

import torch
from torch import Tensor, nn


class _Convolution:
    """A convolution that computes what PyTorch's does, faster or, in one case, rightly.

    Faster: where windows have shrunk to at most two pixels an axis, every output of a 3×3 convolution sees every
    input, so that it is a matrix product, with 16 of the 36 multiplications that a padded one spends on 2×2 pixels.
    And images of one or three channels waste most of a bf16 vector: on a CPU the first layer computes in fp32.

    Rightly: oneDNN's bf16 weight gradients are wrong for volumes of one or two layers, and where a stride sees a single
    column of pixels (it reads and writes beyond them; torch 2.15): there, on a CPU, it computes in fp32.
    """

    def forward(self, x: Tensor) -> Tensor:
        size, first = x.shape[2:], x.dtype == torch.float32  # later layers see bf16
        full, unit = self.in_channels != self.groups, set(self.stride) == {1} and set(self.kernel_size) == {3}
        as_product = max(size) <= 2 and full and unit
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            thin = min(size) <= 2 if len(size) == 3 else size[-1] == 1 and max(self.stride) > 1
            if (thin and not as_product) or (first and self.weight.shape[1] < 8):
                with torch.autocast("cpu", enabled=False):
                    return self.forward(x.float()).to(torch.get_autocast_dtype("cpu"))
        if not as_product:
            return super().forward(x)
        y = self._as_product(x)
        return y if self.bias is None else y + self.bias.to(y.dtype).view(-1, *[1] * len(size))

    def _as_product(self, x: Tensor) -> Tensor:
        """(B, G·c, *size) → (B, G·o, *size), each output pixel a sum over all pixels: one matrix for each group."""
        size, dims = x.shape[2:], x.ndim - 2
        pixels = torch.cartesian_prod(*(torch.arange(s, device=x.device) for s in size)).view(size.numel(), dims)
        reach = pixels - pixels[:, None] + 1  # [output pixel, input pixel, axis] → place in the kernel, 0 to 2
        taps = torch.arange(3**dims, device=x.device).view((3,) * dims)[reach.unbind(-1)]
        weight = self.weight.to(x.dtype).flatten(2).transpose(1, 2)  # (G·o, taps, c)
        weight = weight.index_select(1, taps.flatten())  # (G·o, out · in pixels, c)
        weight = weight.unflatten(1, taps.shape).reshape(self.groups, -1, len(pixels) * self.weight.shape[1])
        x = x.flatten(2).transpose(1, 2).unflatten(2, (self.groups, -1)).permute(2, 0, 1, 3).flatten(2)
        y = torch.bmm(x, weight.transpose(1, 2))  # (G, B, in pixels · c) → (G, B, o · out pixels)
        y = y.unflatten(2, (-1, len(pixels))).permute(1, 3, 0, 2).flatten(2)  # (B, pixels, G·o)
        return y.transpose(1, 2).unflatten(2, size)


class _Conv2d(_Convolution, nn.Conv2d):
    pass


class _Conv3d(_Convolution, nn.Conv3d):
    pass


CONV = {2: _Conv2d, 3: _Conv3d}
