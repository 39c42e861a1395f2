"""The networks: backbones, each with a width and a number of groups, and their convolution."""

from . import backbones as backbones
