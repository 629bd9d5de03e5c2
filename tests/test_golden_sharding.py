"""A change of where tensors lie, or of what devices exchange, shows as a difference to tests/golden_sharding."""

from __future__ import annotations

import difflib

import jax
import pytest

from tests.golden_sharding.tables import COMMAND, CONFIGS, DIRECTORY, counts, specs
from tests.layouts import DEVICES


def assert_unchanged(name: str, text: str) -> None:
    golden = (DIRECTORY / name).read_text()
    changed = "".join(difflib.unified_diff(golden.splitlines(True), text.splitlines(True), "golden", "now", n=1))
    assert not changed, f"tests/golden_sharding/{name} has changed; if that is meant: {COMMAND}\n{changed}"


@pytest.mark.parametrize("name", CONFIGS)
def test_tensors_lie_where_they_did(name):
    assert_unchanged(f"{name}.txt", specs(name))


@pytest.mark.skipif(len(jax.devices()) < DEVICES, reason="needs 8 devices")
def test_devices_exchange_what_they_did():
    made_by = (DIRECTORY / "collectives.txt").read_text().split(",")[0]
    if made_by != f"jax {jax.__version__}":
        pytest.skip(f"collectives are counted of {made_by}, this is {jax.__version__}; see {COMMAND}")
    assert_unchanged("collectives.txt", counts())
