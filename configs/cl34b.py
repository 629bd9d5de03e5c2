"""The method on CodeLlama 34B Python.

    python launch.py --config=configs/cl34b.py --workdir=runs/cl34b --config.data.train=DIR

DIR is a dataset directory (docs/data.md). The published scores come from code instructions once and the traces of
ReflectionSeq-GPT and ReflectionSeq-DS twice an epoch; without DIR the run trains on problems that it makes itself.

Needs 20.8 of the 79.1 GiB of each of 64 H100: float32 weights, gradients and AdamW moments split over all of them, and
the activations of one row of 8,192 slots each (python launch.py --config=configs/cl34b.py --mode=plan
--topology=h100:64 --effort=fast); docs/plans.md has more, and times.

Expect pass@1, greedy: HumanEval 70.7, HumanEval+ 66.5, MBPP 68.4, MBPP+ 56.6. So the authors' repository
(github.com/SenseLLM/ReflectionCoder, of arXiv 2405.17057) reports ReflectionCoder-CL-34B; it has not been trained again
here.

The tokenizer files on the Hub may name infilling tokens for which these weights have no rows (transformers issue
26714). Those that tokenizer.json lacks are left out; if it holds them too, the import refuses, and any copy of Llama
2's tokenizer will do, which has the same 32,000 tokens: --config.tokenizer.path.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """See the module's text."""
    config = base.get_large_config()
    config.model.init = "codellama/CodeLlama-34b-Python-hf"
    config.model.hidden_size = 8192
    config.model.intermediate_size = 22016
    config.model.num_layers = 48
    config.model.num_heads = 64
    config.model.num_kv_heads = 8
    config.model.head_dim = 128
    config.model.family = "llama"
    config.model.rope_theta = 1000000.0
    config.model.rms_norm_eps = 1e-5
    config.model.tie_embeddings = False
    config.model.max_position_embeddings = 16384
    config.model.vocab_size = 32000 + 7
    return config
