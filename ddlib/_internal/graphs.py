"""A training step as one CUDA graph: a small network leaves a GPU waiting for Python.

All that a step reads lies on the device, so that it is the same work each time: after a few steps as usual it is
captured, and replayed from then on.
"""

import os
import warnings
from collections.abc import Callable
from itertools import chain

import torch
from torch import nn

from .checkpoints import layers
from .devices import random_on_cpu

USUAL = 3  # steps before the capture: buffers and plans that are made once are made in them


class Step:
    """Does `step()`, which trains `model` in place: on a GPU as a replay, from the fourth call on.

    What no graph can hold (`obstacle`, where that is known) is done as usual, and a warning says why;
    DDLIB_CUDA_GRAPHS=0 switches graphs off.
    """

    def __init__(self, step: Callable[[], None], model: nn.Module, device: torch.device, obstacle: str = ""):
        self.step, self.model, self.device, self.obstacle = step, model, device, obstacle
        self.usual = device.type != "cuda" or os.environ.get("DDLIB_CUDA_GRAPHS") == "0"
        self.graph, self.stream, self.taken, self.seen = None, None, 0, ""

    def begin(self) -> None:
        """Before an epoch: what was changed in the model since the last one, a replay would not see."""
        if not self.usual and (obstacle := self.obstacle or _obstacle(self.model)):
            self._as_usual(obstacle)
        if not self.usual and (now := _seen_by_a_graph(self.model)) != self.seen:
            self.seen, self.graph, self.taken = now, None, 0

    def __call__(self) -> None:
        if self.graph is not None:
            self.graph.replay()
        elif self.usual:
            self.step()
        elif self.taken < USUAL:
            self._watched()
        else:
            self._capture()
            self()

    def _watched(self) -> None:
        """A step on the graph's own stream; the last one before the capture is watched for what no graph can hold."""
        self.taken, here, drawn = self.taken + 1, torch.cuda.current_stream(self.device), random_on_cpu()
        self.stream = self.stream or torch.cuda.Stream(self.device)
        self.stream.wait_stream(here)
        mode = torch.cuda.get_sync_debug_mode()
        with torch.cuda.stream(self.stream), warnings.catch_warnings(record=self.taken == USUAL) as told:
            if self.taken == USUAL:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
            try:
                self.step()
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        here.wait_stream(self.stream)
        if any("synchroniz" in str(warning.message) for warning in told or ()):
            self._as_usual("it waits for the GPU, to read a number, say")
        elif self.taken == USUAL and drawn != random_on_cpu():
            self._as_usual("it draws random numbers on the CPU")

    def _capture(self) -> None:
        self.graph, generator = torch.cuda.CUDAGraph(), torch.cuda.default_generators[self.device.index]
        here, how = (
            torch.cuda.current_stream(self.device),
            {"stream": self.stream, "capture_error_mode": "thread_local"},
        )
        try:
            with torch.cuda.stream(here), torch.cuda.graph(self.graph, **how):  # back on this one if it fails, too
                self.step()
        except RuntimeError as error:
            self.graph = None
            generator.graphsafe_set_state(generator.clone_state())  # the old one takes itself for captured still
            self._as_usual(str(error).partition("\n")[0])

    def _as_usual(self, obstacle: str) -> None:
        self.usual, self.graph = True, None
        warnings.warn(f"{type(self.model).__name__} is trained without a CUDA graph: {obstacle}.", stacklevel=2)


def _seen_by_a_graph(model: nn.Module) -> str:
    places = [tensor.data_ptr() for tensor in chain(model.parameters(), model.buffers())]
    return f"{layers(model)} {[module.training for module in model.modules()]} {places}"


def _obstacle(model: nn.Module) -> str:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return "ranks exchange probabilities in it"
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooked = [thing for thing in (*model.modules(), *model.parameters()) if any(getattr(thing, k, 0) for k in kinds)]
    return f"hooks of the {type(hooked[0]).__name__} would not be called" if hooked else ""
