"""``python -m app``."""

import os

# Threads that wait by spinning slow a step threefold as soon as they share a core with anything else, as
# they do in a pod with a CPU limit; sleeping costs a few per cent on an idle machine. Read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from app.cli import main

main()
