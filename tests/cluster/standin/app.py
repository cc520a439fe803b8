"""The commands of the workflow's pods, which do nothing: ``--seeds-per-pod`` is how many shards plan makes."""

import json
import sys
import time
from pathlib import Path

command = sys.argv[1]
options = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[2:] if word.startswith("--") and "=" in word)
if command == "plan":
    out = Path(options["out"])
    out.mkdir()
    count = int(options["seeds-per-pod"])
    group = {"group": "baselines", "method": "", "seed": "", "pretrain": False, "trained": 0, "frozen": count}
    files = {"run-id": "standin", "report": "none", "jobs-per-pod": "1", "groups.json": json.dumps([group])}
    for name, text in (files | {"summary.json": json.dumps({"pods": count})}).items():
        (out / name).write_text(text)
elif command == "shard":
    time.sleep(5)
    print("done")
