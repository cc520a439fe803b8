"""What a long job says while it works: a bar on a terminal, JSON lines otherwise, a count for Argo."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Progress:
    """What a long job says while it works: a bar on a terminal, JSON lines otherwise.

    Both go to standard error, so that standard output holds results alone. Where Argo names a progress
    file, ``done/total`` is written there too.

    Args:
        stage: the word in front.
        **context: fields of every JSON line, such as ``run_id`` and ``job``.
    """

    every_seconds = 5.0
    bars = True  # False in the workers of a runner, whose bars would overwrite each other

    def __init__(self, stage: str, **context: Any) -> None:
        self.stage, self.context = stage, context
        self._file = os.environ.get("ARGO_PROGRESS_FILE")

    def say(self, message: str, **fields: Any) -> None:
        """Print one message at once."""
        if sys.stderr.isatty():
            with contextlib.suppress(BrokenPipeError):  # nobody reads on, which does not concern the job
                print(f"{self.stage}: {message}", file=sys.stderr, flush=True)
        else:
            self._line(message=message, **fields)

    def _line(self, **fields: Any) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = {"time": stamp, "stage": self.stage} | self.context | fields
        with contextlib.suppress(BrokenPipeError):  # nobody reads on, which does not concern the job
            print(json.dumps(line), file=sys.stderr, flush=True)

    def write_progress_file(self, done: int, total: int) -> None:
        """Write ``done/total`` to Argo's progress file, if there is one."""
        if self._file:
            with contextlib.suppress(OSError):  # what watches the job must not end it
                Path(self._file).write_text(f"{done}/{total}\n")

    @contextlib.contextmanager
    def bar(self, total: int, done: int = 0) -> Iterator[Bar]:
        """Show a bar of ``total`` steps of which ``done`` are done."""
        bar = Bar(self, total, done)
        try:
            yield bar
        finally:
            bar.close()


class Bar:
    """One running bar; see ``Progress.bar``. On a terminal it draws itself anew four times a second."""

    shortest, longest = 10, 40  # columns of the bar itself

    def __init__(self, progress: Progress, total: int, done: int) -> None:
        self._progress, self._total, self._start, self._done = progress, total, done, done
        self._begin = self._now = time.monotonic()
        self._first = 0.0  # when the first step was done: it takes longer than others, and is not counted if it can be
        self._said = -math.inf
        self._fields: list[str] = []
        self._live: Any = None
        if sys.stderr.isatty() and Progress.bars:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(self, console=Console(stderr=True), refresh_per_second=4)
            self._live.start()

    def advance(self, **fields: float) -> None:
        """One step is done; ``fields`` are shown beside it."""
        self._done += 1
        self._now = time.monotonic()
        if self._done == self._start + 1:
            self._first = self._now
        self._fields = [f"{key} {value:#.4g}" for key, value in fields.items()]
        if self._now - self._said >= self._progress.every_seconds or self._done >= self._total:
            self._said = self._now
            self._progress.write_progress_file(self._done, self._total)
            if not sys.stderr.isatty():
                left = self.seconds_left
                known = {} if left is None else {"seconds_left": round(left)}
                self._progress._line(done=self._done, total=self._total, **known, **fields)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all steps are done, as long as those since the start took; None before there was one."""
        steps = self._done - self._start
        if steps == 0:
            return None
        pace = (self._now - self._first) / (steps - 1) if steps > 1 else self._now - self._begin
        return max(0.0, (self._total - self._done) * pace - (time.monotonic() - self._now))

    def layout(self, width: int) -> tuple[str, int, str]:
        """Return what fits into ``width`` columns: the name, the columns of the bar, and what stands behind it.

        The count and the time left come first, then the name, cut in its middle if need be, a bar, and as many of
        the fields as there is room for.
        """
        left = self.seconds_left
        if self._done >= self._total:
            behind = f"{self._done}/{self._total} in {_clock(time.monotonic() - self._begin)}"
        else:
            behind = f"{self._done}/{self._total} {'-:--:--' if left is None else _clock(left)} left"
        name = f"{self._progress.stage} {self._progress.context.get('job', '')}".strip()
        name = _cut(name, max(8, width - len(behind) - self.shortest - 2))
        room = width - len(name) - len(behind) - 2
        for field in self._fields:
            if len(field) + 2 > room - self.shortest:
                break
            behind += f"  {field}"
            room -= len(field) + 2
        return name, max(0, min(self.longest, room)), behind

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """Draw the bar for as wide a terminal as there is just now."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        name, columns, behind = self.layout(options.max_width)
        line = Table.grid(padding=(0, 1))
        for _ in range(3):
            line.add_column(no_wrap=True)
        line.add_row(name, ProgressBar(self._total, self._done, columns) if columns else "", behind)
        yield line

    def close(self) -> None:
        """Leave the bar as it is on the terminal."""
        if self._live is not None:
            self._live.stop()


def _clock(seconds: float) -> str:
    """Return a duration as ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _cut(text: str, width: int) -> str:
    """Return ``text`` in at most ``width`` columns, by an ellipsis for its middle."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"
