"""The demo: the whole method on a laptop CPU, from nothing to a one-off coder.

    python launch.py --config=configs/tiny.py --workdir=runs/tiny          (or: make demo)

Builds traces by running mutated programs, trains a tokenizer and a Llama of a million parameters from scratch,
measures pass@1 on held-out tasks, exports a Hugging Face directory and writes report.html.

Needs 2 CPU cores and 1 GB of memory (training peaks at 750 MB: ru_maxrss of 40 steps). Expect 5 minutes on a quiet
machine, 10 on a busy one, most of them training, and a pass@1 of about 70 % on 200 held-out tasks (71.5 and 69.5 % on
two processors, docs/results.md).
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """See the module's text."""
    config = base.get_config()
    config.build.problems = 4200
    config.build.heldout = 200
    config.build.instruction_share = 0.5
    config.build.reflection_share = 0.5
    config.build.phrasings = 3
    config.build.shown_tests = 1
    config.data.reflection_repeats = 1
    config.data.max_length = 384
    config.tokenizer.vocab_size = 1536
    config.tokenizer.pretokenizer = "lines"
    config.model.hidden_size = 128
    config.model.intermediate_size = 384
    config.model.num_layers = 4
    config.model.num_heads = 4
    config.model.num_kv_heads = 4
    config.model.head_dim = 32
    config.model.rope_theta = 10000.0
    config.model.rms_norm_eps = 1e-6
    config.model.tie_embeddings = True
    config.model.max_position_embeddings = 1024
    config.objective.alpha = 0.5
    config.packing.row_length = 768
    config.packing.rows_per_device = 1
    config.optimizer.learning_rate = 4e-3
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.1
    config.train.batch_size = 16
    config.train.epochs = 3.5
    return config
