"""A second process finds what the first has compiled, and numbers do not change."""

import os
import subprocess
import sys

PROGRAM = """
from rcjax.compilation_cache import keep_compiled_programs
keep_compiled_programs()
import os
import jax, jax.numpy as jnp
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_explain_cache_misses", False)
print(os.environ.get("JAX_COMPILATION_CACHE_DIR", "none"))
print(float(jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))(jnp.arange(64.0))))
"""


def run(**environment):
    kept = {k: v for k, v in os.environ.items() if k not in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")}
    command = [sys.executable, "-c", PROGRAM]
    environment = kept | {"JAX_PLATFORMS": "cpu", **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


def test_programs_are_kept_and_found_again(tmp_path):
    directory, value = run(XDG_CACHE_HOME=str(tmp_path))
    assert directory.startswith(str(tmp_path / "rcjax" / "compiled"))
    entries = {path.name for path in tmp_path.glob("**/*-cache")}
    assert entries
    assert run(XDG_CACHE_HOME=str(tmp_path)) == [directory, value]
    assert {path.name for path in tmp_path.glob("**/*-cache")} == entries  # nothing was compiled again


def test_what_the_environment_says_stands(tmp_path):
    assert run(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))[0] == str(
        tmp_path / "own"
    )
    assert run(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR="")[0] == ""


def test_a_cache_that_can_not_be_made_is_done_without(tmp_path):
    (tmp_path / "file").write_text("")
    assert run(XDG_CACHE_HOME=str(tmp_path / "file"))[0] == "none"
