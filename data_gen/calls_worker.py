"""The zygote behind ``call_sandbox.py``: holds the inputs of a benchmark and forks a child per program.

    python -S -s -P -B calls_worker.py ORDERS_FD BASE_DIRECTORY OPTIONS < inputs.pickle

OPTIONS is JSON: ``packages``, directories of installed packages, which programs may import; ``work_bytes`` and
``readable`` as in ``sandbox_worker.py``, whose isolation this is.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OPTIONS = json.loads(sys.argv[3])
sys.path += OPTIONS["packages"]
sys.path.append(ROOT)  # for the imports below alone: programs shall not see our packages
from data_gen import sandbox_worker  # noqa: E402
from data_gen.isolated import calls, namespaces  # noqa: E402

if ROOT in sys.path:
    sys.path.remove(ROOT)
sys.path_importer_cache.clear()


def main() -> None:
    orders, base = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    calls.prepare(pickle.load(sys.stdin.buffer))
    os.umask(0o077)
    seed = os.getpid()
    reached = {"means": "namespaces", "network": False, "pid": False, "mounts": False, "root": False}
    namespaces.enter(reached)
    if reached["pid"]:
        pid = os.fork()
        if pid:
            orders.close()
            os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 255)
        namespaces.die_with_parent()
    if reached["mounts"]:
        reached["root"] = namespaces.private_root(base, OPTIONS["readable"], OPTIONS["work_bytes"])
    sandbox_worker.serve(orders, reached, base, OPTIONS, seed, calls.start)


if __name__ == "__main__":
    main()
