"""A plain VGG, as textbooks train it: the window is flattened, and there is dropout, but no batch norm."""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from .convolution import CONV

_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


class PlainVGG9(nn.Module):
    """Seven 3×3 convolutions with ReLU, two of width w, two of 2w, three of 4w; flatten; a dense layer of 4w; classes.

    Simonyan and Zisserman 2015: max-pool after each block, dense layers that see every pixel, dropout of 0.5 before
    the classifier (Srivastava et al. 2014).  One dense layer, of 4w, and dropout of 0.2 after each block are how
    tutorials shrink it to images of 32×32 (the sizes, He initialisation and a pool that rounds up are ours).

    Since the dense layer sees every pixel, a local CNN of the same width has fewer weights on its smaller window.
    Dropout draws a random number for each output of a layer, so that networks side by side would not draw what each
    draws alone: local CNNs are trained one by one (`engine="loop"`, or an executor).

    Args:
        window_shape: pixels for each axis, of two or three.
    """

    def __init__(
        self, in_channels: int, num_classes: int, width: int, dims: int = 2, window_shape: Sequence[int] | None = None
    ):
        super().__init__()
        if window_shape is None:
            raise ValueError("backbone 'vgg9_plain' needs window_shape: its dense layer sees every pixel.")
        layers, channels, pixels = [], in_channels, tuple(window_shape)
        for outputs, count in ((width, 2), (2 * width, 2), (4 * width, 3)):
            for _ in range(count):
                layers += [CONV[dims](channels, outputs, 3, padding=1), nn.ReLU(inplace=True)]
                channels = outputs
            layers += [_POOL[dims](2, ceil_mode=True), nn.Dropout(0.2)]
            pixels = tuple(-(-length // 2) for length in pixels)
        self.features = nn.Sequential(*layers, nn.Flatten())
        dense = nn.Linear(channels * prod(pixels), channels)
        self.head = nn.Sequential(dense, nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(channels, num_classes))
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.Conv3d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
