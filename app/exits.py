"""From what ended a command to its exit code, and the line that says why."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import typer

from app.errors import MACHINE_ERRORS, AppError, Interrupted, UsageError, os_error
from app.machine import enough_memory, keep_library_caches_writable, speak_plainly
from app.runtime import SIGNALS, Stopped, never_lost, stop_now


def exit_code(command: Callable[[], int | None]) -> int:
    """Run a command and return the documented exit code; an expected error is one line on standard error."""
    code = 0
    speak_plainly()
    keep_library_caches_writable()
    previous = {number: signal.signal(number, stop_now) for number in SIGNALS}  # a training loop has its own
    try:
        with never_lost(), enough_memory("pretrain.batch_size, or batch_size of the protocol"):
            code = command() or 0
            sys.stdout.flush()  # here, where a full disk can still be said
    except BrokenPipeError:  # whoever reads what we print has had enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except AppError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except typer.TyperException as error:
        print(f"error: {error.format_message()} (--help shows the options)", file=sys.stderr)
        code = UsageError.exit_code
    except Stopped as stop:
        print(f"error: {stop}: stopped; run the same command again", file=sys.stderr)
        code = Interrupted.exit_code
    except Exception as error:
        code = _unforeseen(error)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.setitimer(signal.ITIMER_REAL, 0)  # a signal may have come while `never_lost` was left
    return code


def _unforeseen(error: Exception) -> int:
    """Print one line for what the machine did to us, a traceback for our own mistakes; return the exit code."""
    if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
        explained = os_error(error, Path(str(error.filename or "this machine")))
        print(f"error: {explained}", file=sys.stderr)
        return explained.exit_code
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        print("error: this machine refuses another thread; raise `ulimit -u`, or lower --workers", file=sys.stderr)
        return UsageError.exit_code
    traceback.print_exception(error)
    print("error: this is a bug; please report it with the lines above", file=sys.stderr)
    return AppError.exit_code
