"""The method on DeepSeek-Coder 33B.

    python launch.py --config=configs/ds33b.py --workdir=runs/ds33b --config.data.train=DIR

DIR is a dataset directory (docs/data.md). The published scores come from code instructions once and the traces of
ReflectionSeq-GPT and ReflectionSeq-DS twice an epoch; without DIR the run trains on problems that it makes itself.

Needs 21.1 of the 95 GiB of each of 64 TPU v5p chips: float32 weights, gradients and AdamW moments split over all of
them, and the activations of one row of 8,192 slots each, which holds both views of an example of 4,096 tokens (python
launch.py --config=configs/ds33b.py --mode=plan --topology=v5p:4x4x4). 64 H100 need 20.8 of 79.1 GiB each (the same
with --topology=h100:64 --effort=fast); docs/plans.md has more, and times.

Expect pass@1, greedy: HumanEval 82.9, HumanEval+ 76.8, MBPP 84.1, MBPP+ 72.0. So ReflectionCoder-DS-33B is reported
(arXiv 2405.17057); it has not been trained again here.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """See the module's text."""
    config = base.get_large_config()
    config.model.init = "deepseek-ai/deepseek-coder-33b-base"
    config.model.hidden_size = 7168
    config.model.intermediate_size = 19200
    config.model.num_layers = 62
    config.model.num_heads = 56
    config.model.num_kv_heads = 8
    config.model.head_dim = 128
    config.model.family = "llama"
    config.model.rope_theta = 100000.0
    config.model.rope_scaling = dict(rope_type="linear", factor=4.0)
    config.model.rms_norm_eps = 1e-6
    config.model.tie_embeddings = False
    config.model.max_position_embeddings = 16384
    config.model.vocab_size = 32022 + 7  # the checkpoint's table has 32256 rows, of which so many are in use
    return config
