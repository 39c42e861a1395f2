"""Processes of this machine for whole tasks: a point of a sweep, an engine of the benchmark."""

import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import active_children, get_context
from threading import current_thread, main_thread
from typing import Any


class Workers(ProcessPoolExecutor):
    """Fresh processes that leave Ctrl-C to us: it reaches every process of a terminal, and each would tell of it.

    Used by `with`.  When the block is left by an error or Ctrl-C, its processes end at once, and their tasks with them.
    """

    def __init__(self, workers: int, prepare: Callable[..., object] | None = None, *arguments: Any):
        """`prepare(*arguments)` is called first in each process."""
        super().__init__(workers, get_context("spawn"), initializer=prepare, initargs=arguments)
        self._others = active_children()

    def submit(self, *task: Any, **options: Any) -> Future:
        """As any executor's; a process that starts here is deaf to interrupts from its first import."""
        if current_thread() is not main_thread():  # only the main thread may say what a signal does
            return super().submit(*task, **options)
        heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            return super().submit(*task, **options)
        finally:
            signal.signal(signal.SIGINT, heard)

    def __exit__(self, error: type[BaseException] | None, *details: Any) -> None:
        self.shutdown(wait=error is None, cancel_futures=error is not None)
        if error is not None:
            for process in active_children():
                if process not in self._others:
                    process.terminate()
