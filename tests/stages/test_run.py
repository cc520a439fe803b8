"""The local runner's workers."""

import contextlib
import multiprocessing
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from app.errors import Interrupted
from app.runtime import SIGNALS
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


def test_a_signal_that_is_dropped_stops_a_worker_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def drop(*_: object, **__: object) -> None:
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        time.sleep(10)
        pytest.fail("lost")

    before = {number: signal.getsignal(number) for number in SIGNALS}
    monkeypatch.setattr("app.config.parse_config", drop)
    signal.signal(signal.SIGTERM, run._Worker.receive)
    try:
        with pytest.raises(Interrupted, match="SIGTERM: stopped"):
            run._run_remote("no store", "no run", {}, [])
    finally:
        run._Worker.stopped = False
        for number, handler in before.items():
            signal.signal(number, handler)
