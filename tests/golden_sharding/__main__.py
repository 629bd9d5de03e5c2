"""``python -m tests.golden_sharding --write`` makes the tables anew; without ``--write`` it prints them."""

from __future__ import annotations

import sys

from tests import conftest  # noqa: F401 - sets the environment, before jax starts
from tests.golden_sharding.tables import DIRECTORY, tables

for name, text in tables().items():
    if "--write" in sys.argv:
        (DIRECTORY / name).write_text(text)
    else:
        print(text)
