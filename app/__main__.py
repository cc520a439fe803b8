"""``python -m app``, and the command ``byol-med``."""

import os
import signal


def start() -> None:
    """Run the command line, and exit."""
    # Before a job listens for them, signals find nothing to save: "try again". As the first process of a
    # container we would not even be stopped by SIGTERM without a handler.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(75))

    # Threads that wait by spinning slow a step threefold as soon as they share a core with anything else, as
    # they do in a pod with a CPU limit; sleeping costs a few per cent on an idle machine. Read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    # Memory in pages of 2 MB instead of 4 kB, of which a step of training touches 40,000; read when torch loads.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

    # What Apple's GPUs lack is then done by the CPU, instead of ending the job; read when torch loads.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

    from app.cli import main

    main()


if __name__ == "__main__":
    start()
