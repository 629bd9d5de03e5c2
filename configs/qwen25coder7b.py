"""The method on Qwen2.5-Coder 7B.

    python launch.py --config=configs/qwen25coder7b.py --workdir=runs/qwen25coder7b --config.data.train=DIR

DIR is a dataset directory (docs/data.md); without it the run trains on problems that it makes itself.

Needs 14.2 of the 31.25 GiB of each of 16 TPU v6e chips: float32 weights, gradients and AdamW moments split over all of
them, and the activations of one row of 8,192 slots each (python launch.py --config=configs/qwen25coder7b.py
--mode=plan --topology=v6e:4x4 --effort=fast); docs/plans.md has more, and times.

Expect no particular score: none is published for the method (arXiv 2405.17057) on this model, which is younger.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """See the module's text."""
    config = base.get_large_config()
    config.model.init = "Qwen/Qwen2.5-Coder-7B"
    config.model.hidden_size = 3584
    config.model.intermediate_size = 18944
    config.model.num_layers = 28
    config.model.num_heads = 28
    config.model.num_kv_heads = 4
    config.model.head_dim = 128
    config.model.family = "qwen2"
    config.model.rope_theta = 1000000.0
    config.model.rms_norm_eps = 1e-6
    config.model.tie_embeddings = False
    config.model.qkv_bias = True
    config.model.max_position_embeddings = 32768
    config.model.vocab_size = 151665 + 7  # the checkpoint's table has 152064 rows
    return config
