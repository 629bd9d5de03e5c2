"""Products of a float32 run are of float32 on every chip: the programs say so, whatever a chip would do by default."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from rcjax import model as llama
from rcjax.decode import engine, generate
from rcjax.objective import make_objective
from rcjax.packing import PAIR_ARRAYS, SINGLE_ARRAYS, TOKEN_ARRAYS
from rcjax.sharding import make_mesh
from rcjax.train.state import abstract_state, make_optimizer, state_shardings
from rcjax.train.step import LossSettings, make_steps
from tests.model.peers import make_config

ADAMW = dict(learning_rate=1e-4, warmup_ratio=0.0, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=1.0)


def products(text: str) -> list[tuple[str, bool]]:
    """(types of operands and result, whether full precision is asked for) of each product of a lowered program."""
    lines = [line for line in text.splitlines() if "dot_general" in line]
    return [(re.search(r": (\(.*)", line)[1], "[HIGHEST, HIGHEST]" in line) for line in lines]


@pytest.mark.parametrize("attention", ["tiles", "blocks"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_training(dtype, attention):
    model, mesh = make_config(), make_mesh({}, jax.devices()[:1])
    tx, schedule = make_optimizer(ConfigDict(ADAMW), 10)
    shardings = state_shardings(model, tx, mesh)
    settings = LossSettings(model, make_objective("reference"), compute_dtype=dtype, remat="dots", attention=attention)
    steps = make_steps(settings, tx, schedule, shardings, mesh)
    arrays = {
        name: jax.ShapeDtypeStruct((1, 256), kind)
        for names in (TOKEN_ARRAYS, SINGLE_ARRAYS, PAIR_ARRAYS)
        for name, kind in names.items()
    }
    with jax.set_mesh(mesh):
        state = abstract_state(model, tx, shardings)
        found = products(steps.accumulate.lower(state.params, jax.eval_shape(steps.zeros), arrays).as_text())
    if dtype == jnp.float32:
        assert len(found) > 20
        assert all(full for _, full in found), [types for types, full in found if not full]
    else:
        # Nothing is slowed down: no product with the vocabulary is of float32 throughout, and full precision is asked
        # for by norms alone, which are sums written as products.
        vocabulary = [types for types, _ in found if f"x{model.table_size}x" in types]
        assert len(vocabulary) >= 6  # logits and two gradients, of single labels and of pairs
        assert [types for types in vocabulary if types.count("xf32>") == 3] == []
        assert [types for types, full in found if full and types.count("bf16") > 1] == []


@pytest.mark.parametrize(("dtype", "expected"), [(jnp.float32, "highest"), (jnp.bfloat16, None)])
def test_generation(monkeypatch, dtype, expected):
    asked, step = [], engine.step
    monkeypatch.setattr(
        engine, "step", lambda *args: (asked.append(jax.config.jax_default_matmul_precision), step(*args))[1]
    )
    config = make_config(hidden_size=48 if dtype == jnp.float32 else 64)  # a program of its own
    params = llama.init_params(config, jax.random.key(0))
    new = generate(config, params, [[1, 2, 3]], max_new_tokens=3, stop_ids=[], dtype=dtype)
    assert np.shape(new) == (1, 3)
    assert asked == [expected]
    assert jax.config.jax_default_matmul_precision is None
