"""The zygote behind ``call_sandbox.py``: holds the inputs of a benchmark and forks a child per program.

    python -S -s -P -B calls_worker.py ORDERS_FD BASE_DIRECTORY OPTIONS < inputs.pickle

OPTIONS is JSON: ``packages``, directories of installed packages, which programs may import; ``work_bytes`` and
``readable`` as in ``sandbox_worker.py``, whose isolation this is; ``plain``, see ``call_sandbox.CallWorker``.
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
from data_gen.isolated import calls  # noqa: E402

if ROOT in sys.path:
    sys.path.remove(ROOT)
sys.path_importer_cache.clear()


def main() -> None:
    orders, base = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    calls.prepare(OPTIONS["plain"])
    os.umask(0o077)
    seed = os.getpid()
    reached = sandbox_worker.confine(orders, "namespaces", base, OPTIONS)
    calls.INPUTS.update(pickle.load(sys.stdin.buffer))  # which may come when all else has been ready for long
    calls.settle(sandbox_worker.private_directory(reached, base))
    sandbox_worker.serve(orders, reached, base, OPTIONS, seed, calls.start)


if __name__ == "__main__":
    main()
