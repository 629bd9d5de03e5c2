"""Every field with its meaning; the other files say only what differs.

Not meant to be run as it stands: `configs/tiny.py` is the demo.

    python launch.py --config=configs/base.py --mode=train --workdir=runs/mine --config.data.train=DIR ...
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The recipe of ReflectionCoder (arXiv 2405.17057, section 4.1) where it has an opinion."""
    config = ConfigDict()
    config.seed = 3407

    # Mesh over all devices; one axis may be -1 and takes what is left (rcjax/sharding.py).
    config.mesh = ConfigDict(dict(replica=1, data=-1, fsdp=1, tensor=1))

    config.data = ConfigDict(
        dict(
            train="",  # dataset directory to train on; empty: the pipeline builds one from `build`
            heldout="",  # dataset directory whose `heldout` split is evaluated; empty: that of `train`
            instruction_repeats=1,  # how often each split stands in an epoch; 0 leaves it out
            reflection_repeats=2,
            max_length=4096,  # tokens of an example with BOS and EOS; longer ones are dropped and counted
            prefetch=2,  # optimizer steps packed ahead of the one that runs
        )
    )
    # What data_gen builds when `data.train` is empty: our own problem families, the bug-injection teacher.
    config.build = ConfigDict(
        dict(
            problems=7000,  # distinct tasks
            heldout=200,  # tasks kept for evaluation, in no other split in any phrasing
            instruction_share=0.5,  # share of the other tasks that become instruction examples
            reflection_share=0.6,  # and reflection traces; the shares may overlap
            phrasings=1,  # instruction examples a task, each phrased otherwise
            rounds=3,  # most failed attempts in one trace
            shown_tests=2,  # most asserts behind an attempt; the final code is run on all of them
        )
    )
    config.tokenizer = ConfigDict(
        dict(
            path="",  # a Hugging Face tokenizer directory that has the block tokens; empty: train one
            vocab_size=1024,  # of the byte-level BPE that is trained when `path` is empty
            pretokenizer="words",  # what its merges may not cross: words, or lines
        )
    )
    # Llama shape, trained from scratch.
    config.model = ConfigDict(
        dict(
            hidden_size=192,
            intermediate_size=512,
            num_layers=6,
            num_heads=6,
            num_kv_heads=6,
            head_dim=32,
            rope_theta=10000.0,
            rms_norm_eps=1e-6,
            tie_embeddings=True,
            max_position_embeddings=4096,
        )
    )
    config.objective = ConfigDict(
        dict(
            name="reference",  # which tokens carry which loss (rcjax/objective.py)
            alpha=placeholder(float),  # L = alpha KL + (1 - alpha) CE; None: weights 1 and 1
            temperature=1.0,  # of the divergence, whose value is multiplied by its square
            normalisation="example",  # or `token`: over all tokens of the step
            chunk=64,  # label columns projected at a time (rcjax/losses.py)
        )
    )
    config.curriculum = ConfigDict(
        dict(
            name="block",  # none, all, block, sequential_block, random_block, sequential_token, random_token
            block_order=("TEXT", "CODE", "EXECUTION"),
            rate=ConfigDict(dict(shape="linear", start=0.0, end=1.0, final=1.0, power=2.0, steps=3)),
        )
    )
    config.packing = ConfigDict(
        dict(
            row_length=8192,  # slots; both views of an example lie in one row
            rows_per_device=1,  # of a microbatch; its rows are split over replica, data and fsdp
        )
    )
    config.optimizer = ConfigDict(
        dict(
            learning_rate=5e-5,
            warmup_ratio=0.05,  # linear from 0, then cosine to 0
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=0.0,  # on matrices alone
            clip=1.0,  # global norm
        )
    )
    config.train = ConfigDict(
        dict(
            batch_size=512,  # examples an optimizer step, however many rows they fill
            epochs=2.0,
            steps=placeholder(int),  # optimizer steps; None: from `epochs`
            compute_dtype="float32",
            remat="none",  # none, dots, full: what the backward pass computes again
            log_every=10,  # steps between two lines of metrics
        )
    )
    config.checkpoint = ConfigDict(
        dict(
            every=100,  # optimizer steps between checkpoints; the last step is always saved
            keep=2,
        )
    )
    config.evaluation = ConfigDict(
        dict(
            problems=0,  # of the held-out split; 0: all
            max_new_tokens=128,
            batch_size=64,
        )
    )
    config.export = ConfigDict(dict(dtype="float32"))
    # Also train the same model on instructions alone, for as many tokens, and put its score beside.
    config.baseline = False
    return config
