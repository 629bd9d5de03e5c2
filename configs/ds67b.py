"""The method on DeepSeek-Coder 6.7B, its authors' most studied model.

    python launch.py --config=configs/ds67b.py --workdir=runs/ds67b --config.data.train=DIR

DIR is a dataset directory (docs/data.md). The published scores come from code instructions once and the traces of
ReflectionSeq-GPT and ReflectionSeq-DS twice an epoch; without DIR the run trains on problems that it makes itself.

Needs 13.1 of the 15.75 GiB of each of 16 TPU v5e chips: float32 weights, gradients and AdamW moments split over all of
them, and the activations of one row of 8,192 slots each, which holds both views of an example of 4,096 tokens (python
launch.py --config=configs/ds67b.py --mode=plan --topology=v5e:4x4). 8 H100 need 20.6 of 79.1 GiB each (the same with
--topology=h100:8 --effort=fast); docs/plans.md has more, and times.

Expect pass@1, greedy: HumanEval 80.5, HumanEval+ 74.4, MBPP 81.5, MBPP+ 69.6. So ReflectionCoder-DS-6.7B is reported
(arXiv 2405.17057); it has not been trained again here.
Its ablations on HumanEval and MBPP+: instructions alone 74.4 and 63.2, all without distillation 77.4 and 66.5.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """See the module's text."""
    config = base.get_large_config()
    config.model.init = "deepseek-ai/deepseek-coder-6.7b-base"
    config.model.hidden_size = 4096
    config.model.intermediate_size = 11008
    config.model.num_layers = 32
    config.model.num_heads = 32
    config.model.num_kv_heads = 32
    config.model.head_dim = 128
    config.model.family = "llama"
    config.model.rope_theta = 100000.0
    config.model.rope_scaling = dict(rope_type="linear", factor=4.0)
    config.model.rms_norm_eps = 1e-6
    config.model.tie_embeddings = False
    config.model.max_position_embeddings = 16384
    config.model.vocab_size = 32022 + 7  # the checkpoint's table has 32256 rows, of which so many are in use
    return config
