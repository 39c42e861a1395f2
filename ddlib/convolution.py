"""The convolution of small windows, and the way round oneDNN's wrong bf16 gradients."""

import torch
from torch import Tensor, nn


class _Convolution:
    """A convolution that computes the same as PyTorch's, faster in two cases that small windows are made of.

    - Where windows have shrunk to at most two pixels an axis, every output of a 3×3 convolution sees every input:
      it is a matrix product, with 16 of the 36 multiplications a padded convolution spends on 2×2 pixels.
    - oneDNN's bf16 weight gradients are wrong for inputs of one or two layers (it reads and writes beyond them;
      torch 2.15): there, on a CPU, it computes in fp32.
    - Images of one or three channels waste most of a bf16 vector: on a CPU the first layer is faster in fp32.
    """

    def forward(self, x: Tensor) -> Tensor:
        size, images = x.shape[2:], x.dtype == torch.float32  # later layers see bf16
        plain = (
            max(size) > 2 or set(self.stride) != {1} or set(self.kernel_size) != {3} or self.in_channels == self.groups
        )
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            thin = plain and (min(size) <= 2 if len(size) == 3 else size[-1] == 1 and max(self.stride) > 1)
            if thin or (images and self.weight.shape[1] < 8):
                with torch.autocast("cpu", enabled=False):
                    return self.forward(x.float()).to(torch.get_autocast_dtype("cpu"))
        if plain:
            return super().forward(x)
        pixels = torch.cartesian_prod(*(torch.arange(s, device=x.device) for s in size)).view(size.numel(), -1)
        taps = torch.zeros(len(pixels), len(pixels), dtype=torch.int64, device=x.device)
        for place in pixels.T:
            taps = 3 * taps + 1 + place - place[:, None]  # [output pixel, input pixel]
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
