"""The method on DeepSeek-Coder 1.3B, for one small TPU host.

    python launch.py --config=configs/ds13b.py --workdir=runs/ds13b --config.data.train=DIR

DIR is a dataset directory (docs/data.md); without it the run trains on problems that it makes itself.

Needs 4.9 of the 15.75 GiB of each of 8 TPU v5e chips: float32 weights, gradients and AdamW moments split over all of
them, and the activations of one row of 8,192 slots each (python launch.py --config=configs/ds13b.py --mode=plan
--topology=v5e:2x4 --effort=fast); docs/plans.md has more, and times.

Expect no particular score: none is published for the method (arXiv 2405.17057) on a model of this size.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """See the module's text."""
    config = base.get_large_config()
    config.model.init = "deepseek-ai/deepseek-coder-1.3b-base"
    config.model.hidden_size = 2048
    config.model.intermediate_size = 5504
    config.model.num_layers = 24
    config.model.num_heads = 16
    config.model.num_kv_heads = 16
    config.model.head_dim = 128
    config.model.family = "llama"
    config.model.rope_theta = 100000.0
    config.model.rope_scaling = dict(rope_type="linear", factor=4.0)
    config.model.rms_norm_eps = 1e-6
    config.model.tie_embeddings = False
    config.model.max_position_embeddings = 16384
    config.model.vocab_size = 32022 + 7  # the checkpoint's table has 32256 rows, of which so many are in use
    return config
