"""A training step as one CUDA graph: a small network leaves a GPU waiting for Python.

All that a step reads lies on the device, so that it is the same work each time: after a few steps as usual it is
captured, and replayed from then on.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident

import torch
from torch import nn

from .devices import random_on_cpu
from .loop import frozen_into_a_graph, obstacle_in

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
        if not self.usual and (obstacle := self.obstacle or obstacle_in(self.model)):
            self._as_usual(obstacle)
        if not self.usual and (now := frozen_into_a_graph(self.model)) != self.seen:
            self.seen, self.graph, self.taken = now, None, 0

    def __call__(self) -> None:
        if self.graph is not None:
            self.graph.replay()
        elif self.usual:
            self.step()
        elif self.taken < USUAL:
            self._before()
        else:
            self._capture()
            self()

    def _before(self) -> None:
        """A step on the graph's own stream; the last one before the capture is watched for what no graph can hold."""
        self.taken, here, drawn = self.taken + 1, torch.cuda.current_stream(self.device), random_on_cpu()
        self.stream = self.stream or torch.cuda.Stream(self.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream), _waits(self.taken == USUAL) as waits:
            self.step()
        here.wait_stream(self.stream)
        if waits:
            self._as_usual("it waits for the GPU, to read a number, say")
        elif self.taken == USUAL and drawn != random_on_cpu():
            self._as_usual("it draws random numbers on the CPU")
        elif self.taken == USUAL and frozen_into_a_graph(self.model) != self.seen:
            self._as_usual("it changes attributes or buffers of its modules")

    def _capture(self) -> None:
        self.graph, generator = torch.cuda.CUDAGraph(), torch.cuda.default_generators[self.device.index]
        here, how = (
            torch.cuda.current_stream(self.device),
            {"stream": self.stream, "capture_error_mode": "thread_local"},
        )
        try:
            with torch.cuda.stream(here), torch.cuda.graph(self.graph, **how):  # back on this one if it fails, too
                self.step()
        except Exception as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # the capture that it broke off is told first
                raise KeyboardInterrupt from None
            generator.graphsafe_set_state(generator.clone_state())  # early versions take it for captured still
            self._as_usual(str(error).partition("\n")[0])

    def _as_usual(self, obstacle: str) -> None:
        self.usual, self.graph = True, None
        warnings.warn(f"{type(self.model).__name__} is trained without a CUDA graph: {obstacle}.", stacklevel=2)


@contextmanager
def _waits(watched: bool) -> Iterator[list[str]]:
    """What PyTorch says of operations in this thread that wait for the GPU."""
    told: list[str] = []
    if not watched:
        yield told
        return
    own, mode = get_ident(), torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        usual = warnings.showwarning

        def show(message: Warning | str, *rest: object) -> None:
            if "called a synchronizing" not in str(message):
                usual(message, *rest)
            elif get_ident() == own:
                told.append(str(message))

        warnings.showwarning = show
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield told
        finally:
            torch.cuda.set_sync_debug_mode(mode)
