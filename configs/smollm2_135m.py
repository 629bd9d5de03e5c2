"""The method on a pretrained model that a laptop can train: SmolLM2-135M-Instruct, on problems made here.

    python launch.py --config=configs/smollm2_135m.py --workdir=runs/smollm2_135m

Shows every stage on real weights: import, block tokens in a tokenizer that lacks them, training, evaluation, export.

Needs 6.7 GiB of memory on a CPU (ru_maxrss of four training steps on two cores), of which 2.0 GiB are float32 weights,
gradients and AdamW moments. A step takes about 100 seconds of one core's time; about 390 examples make 24 steps.

Expect no particular score: none is published for the method (arXiv 2405.17057) on a model this small. Before training,
transformers' greedy generation solves none of the first 20 tasks of HumanEval and 5 of the last 30 of sanitized MBPP.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """See the module's text."""
    config = base.get_config()
    config.build.problems = 400
    config.build.heldout = 40
    config.build.shown_tests = 1
    config.data.reflection_repeats = 1
    config.data.max_length = 768
    config.model.init = "HuggingFaceTB/SmolLM2-135M-Instruct"
    config.model.hidden_size = 576
    config.model.intermediate_size = 1536
    config.model.num_layers = 30
    config.model.num_heads = 9
    config.model.num_kv_heads = 3
    config.model.head_dim = 64
    config.model.family = "llama"
    config.model.rope_theta = 100000.0
    config.model.rms_norm_eps = 1e-5
    config.model.tie_embeddings = True
    config.model.max_position_embeddings = 8192
    config.model.vocab_size = 49152 + 7
    config.packing.row_length = 1536
    config.optimizer.learning_rate = 1e-4
    config.train.batch_size = 16
    config.train.epochs = 1.0
    config.checkpoint.every = 10
    return config
