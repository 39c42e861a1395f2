"""Processes for whole tasks: prepared, deaf to Ctrl-C, gone with their tasks when the block is left by an error."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from ddlib.study.workers import Workers


def hears() -> bool:
    return signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def test_tasks_run_in_prepared_processes_that_leave_interrupts_to_us():
    heard = signal.getsignal(signal.SIGINT)
    with Workers(1, os.umask, 0o027) as workers:
        assert workers.submit(os.getpid).result() != os.getpid()
        assert workers.submit(os.umask, 0o022).result() == 0o027
        assert not workers.submit(hears).result()
    assert signal.getsignal(signal.SIGINT) is heard


def test_a_task_may_come_from_any_thread():
    with ThreadPoolExecutor(1) as thread, Workers(1) as workers:
        assert thread.submit(lambda: workers.submit(abs, -3).result()).result() == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_processes_end_with_their_tasks_when_the_block_is_left_by_an_error(error):
    started = []

    def leave():
        with Workers(1) as workers:
            started.append(psutil.Process(workers.submit(os.getpid).result()))
            workers.submit(time.sleep, 600)
            raise error

    with Workers(1) as others:
        kept = others.submit(os.getpid).result()
        with pytest.raises(error):
            leave()
        assert psutil.wait_procs(started, timeout=30)[1] == []
        assert others.submit(os.getpid).result() == kept
