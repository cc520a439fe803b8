"""The local runner's workers."""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor

import pytest

from app.errors import Interrupted
from app.stages import run


def test_a_signal_waits_until_a_worker_listens() -> None:
    """A worker that is still importing is not killed, which would break the pool and its neighbour's checkpoint."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=run._start_worker) as pool:
        with run._held_back():
            future = pool.submit(run._run_remote, "no store", "no run", {}, [])
        [worker] = pool._processes
        os.kill(worker, signal.SIGINT)
        os.kill(worker, signal.SIGTERM)
        with pytest.raises(Interrupted, match="stopped; run the same command again"):
            future.result(60)
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
