"""What most calls of ``launch.py`` import; see ``tests/launcher.py``."""

import flax.nnx  # noqa: F401
import grain  # noqa: F401
import jax
import orbax.checkpoint  # noqa: F401
import tensorflow_datasets  # noqa: F401
import transformers  # noqa: F401

import rcjax.decode
import rcjax.hf.tokenizer
import rcjax.pipeline
import rcjax.train.loop  # noqa: F401

assert not jax._src.xla_bridge.backends_are_initialized(), "a process that has devices must not be forked"
