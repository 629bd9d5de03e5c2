"""The compilers run in a process of their own: where one gives up by ending its process, that still ends in a sentence.

What they tell themselves on the way there (libtpu finds no TPU) is left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

from rcjax.plan.topology import Topology, TopologyError

MARK = "RCJAX_PLAN_CHILD"
# Lines of the compilers' own log: a letter for how bad it is and a date, or what stands before the first of them.
CHATTER = re.compile(r"^([IWE]\d{4} \d\d:|[IWE]\d{4} |WARNING: All log messages before absl)")


def supervise(topology: Topology) -> None:
    """Runs this command again in a child and ends with its exit code; returns at once in the child.

    Raises:
      TopologyError: the child was ended by a compiler.
    """
    if os.environ.get(MARK):
        return
    sys.stdout.flush()
    done = subprocess.run(
        [sys.executable, *sys.argv], env=os.environ | {MARK: "1"}, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode < 0:
        failed = re.search(r"Check failed: .*", done.stderr)
        reason = failed[0].strip() if failed else f"signal {-done.returncode}"
        raise TopologyError(
            f"--topology={topology.name}: the chips' compiler ended its own process ({reason}); try the other "
            "--effort, another grid, or a newer version of it"
        )
    print("".join(line for line in done.stderr.splitlines(True) if not CHATTER.match(line)), end="", file=sys.stderr)
    sys.exit(done.returncode)
