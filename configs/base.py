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

    # Mesh over all devices. An axis that is None is the preset's below, or 1; -1 takes what devices are left. With no
    # preset and nothing given all devices are `data`.
    config.mesh = ConfigDict(
        dict(
            replica=placeholder(int),  # whole copies, over the slow network between slices
            data=placeholder(int),  # copies, over rows
            fsdp=placeholder(int),  # over rows and, by rules, over the width of parameters
            tensor=placeholder(int),  # over heads, MLP and vocabulary of every layer
        )
    )
    # How parameters and the rest lie on the mesh (docs/sharding.md). The preset fills in what is None here and in
    # `mesh`; a field that is given, in a config file or on the command line, wins over it.
    config.sharding = ConfigDict(
        dict(
            preset="",  # zero1, zero2, fsdp, fsdp+tensor, hybrid; or none: whole everywhere, but for the axes of `mesh`
            # Each: replicated, tensor, fsdp, zero, or rules of one's own, e.g. {"embed": ("data", "fsdp")}.
            params=placeholder(object),
            gradients=placeholder(object),  # their sums over microbatches
            optimizer=placeholder(object),  # AdamW's moments
            ema=placeholder(object),  # the moving average of `teacher.name` ema
            teacher=placeholder(object),  # the network of `teacher.name` frozen
        )
    )

    config.data = ConfigDict(
        dict(
            train="",  # dataset directory to train on; empty: the pipeline builds one from `build`
            heldout="",  # dataset directory whose `heldout` split is evaluated; empty: that of `train`
            instruction_repeats=1,  # how often each split stands in an epoch; 0 leaves it out
            reflection_repeats=2,
            sources=(),  # traces of these sources alone (`source` of the records, docs/data.md); empty: of all
            max_length=4096,  # tokens of an example with BOS and EOS
            overlong="drop",  # longer ones are dropped, or `shorten`ed by the first blocks of the reflection
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
            teacher="bugs",  # who makes the faults: bugs, omissions, slips; several, "omissions,slips", in turn
            rounds=3,  # most failed attempts in one trace
            shown_tests=2,  # most asserts behind an attempt; the final code is run on all of them
        )
    )
    config.tokenizer = ConfigDict(
        dict(
            # Directory or Hub id of a fast tokenizer, to which the block tokens are added where it lacks them; empty:
            # that of `model.init`, or else one is trained.
            path="",
            vocab_size=1024,  # of the byte-level BPE that is trained
            pretokenizer="words",  # what its merges may not cross: words, or lines
        )
    )
    config.model = ConfigDict(
        dict(
            # What training starts from: a Hugging Face directory or Hub id (org/name or org/name@revision) of the
            # Llama, Mistral, Qwen2 or Qwen3 family; empty: from scratch.
            init="",
            # The tables are padded to a multiple of it, so that a mesh divides them; no export holds the padding.
            vocab_multiple=128,
            # The shape. From scratch the first six are needed and the others have defaults (rcjax/model/config.py).
            # With `init` all come from the checkpoint, and one that is given here must be the checkpoint's.
            hidden_size=placeholder(int),
            intermediate_size=placeholder(int),
            num_layers=placeholder(int),
            num_heads=placeholder(int),
            num_kv_heads=placeholder(int),
            head_dim=placeholder(int),
            family=placeholder(str),  # llama, mistral, qwen2 or qwen3: the form of config.json at export
            rope_theta=placeholder(float),
            rope_scaling=placeholder(object),  # e.g. dict(rope_type="linear", factor=4.0)
            rms_norm_eps=placeholder(float),
            tie_embeddings=placeholder(bool),
            qkv_bias=placeholder(bool),
            output_bias=placeholder(bool),
            qk_norm=placeholder(bool),
            sliding_window=placeholder(int),
            full_attention_layers=placeholder(int),
            max_position_embeddings=placeholder(int),
            vocab_size=placeholder(int),  # for planning alone: a run counts its tokenizer
        )
    )
    config.objective = ConfigDict(
        dict(
            name="reference",  # which tokens carry which loss: reference, self_distill, blockwise, ce, table
            alpha=placeholder(float),  # L = alpha KL + (1 - alpha) CE; None: weights 1 and 1 ...
            ce_weight=placeholder(float),  # ... or these
            kd_weight=placeholder(float),
            divergence="forward_kl",  # KL(teacher || student); or reverse_kl, or jsd
            beta=0.5,  # weight of the teacher in the mixture of jsd
            temperature=1.0,  # of the divergence, whose value is multiplied by its square
            # Tables {region: weight} instead of the named objective's own; regions in rcjax/blocks.py.
            teacher_ce=placeholder(object),  # cross-entropy in the teacher view, e.g. dict(TEXT=1.0, ANSWER=0.5)
            student_ce=placeholder(object),  # cross-entropy in the student view
            distill=placeholder(object),  # the divergence
            normalisation="example",  # or `token`: over all tokens of the step
            chunk=64,  # label columns projected at a time (rcjax/losses.py)
        )
    )
    config.teacher = ConfigDict(
        dict(
            name="self",  # the network that is trained, or `frozen`: another one, or `ema`: its own moving average
            model="",  # of `frozen`: Hugging Face directory or Hub id, with the same tokenizer
            dtype="bfloat16",  # of `frozen`'s parameters
            decay=0.999,  # of `ema`
            every=1,  # optimizer steps between two updates of `ema`
            bias_correction=True,  # `ema` forgets the parameters of step 0 at once
        )
    )
    config.curriculum = ConfigDict(
        dict(
            name="block",  # none, all, block, sequential_block, random_block, sequential_token, random_token, mixture
            block_order=("TEXT", "CODE", "EXECUTION"),
            mixture=(),  # with name `mixture`: the curricula of which each example draws one at every step
            rate=ConfigDict(
                dict(
                    shape="linear",  # linear, cosine, power, step, hold
                    start=0.0,  # share of the training up to which the rate is `initial`
                    end=1.0,  # share of the training from which on it is `final`
                    initial=0.0,
                    final=1.0,
                    power=2.0,
                    steps=3,
                )
            ),
        )
    )
    config.packing = ConfigDict(
        dict(
            row_length=8192,  # slots; both views of an example lie in one row
            rows_per_device=1,  # of a microbatch; its rows are split over replica, data and fsdp
            cuts=4,  # widths that a microbatch may be cut to; each that occurs is compiled once
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
            remat="none",  # what the backward pass computes again: none, dots, full; offload (rcjax/model/llama.py)
            log_every=10,  # steps between two lines of metrics
        )
    )
    # Optimizer steps whose XLA profile is written to WORKDIR/profile (xprof, TensorBoard): "10:13" for 10, 11 and 12.
    config.profile = ConfigDict(dict(steps=""))
    config.checkpoint = ConfigDict(
        dict(
            every=100,  # optimizer steps between checkpoints; 0: none, but the last step is always saved
            minutes=0.0,  # between two checkpoints at most; 0: steps alone count
            keep=2,  # newest ones
            keep_every=0,  # those of multiples of so many steps are kept besides; 0: none
            failures=3,  # saves in a row that may fail (disk full ...) before the run ends; the last one must not
        )
    )
    # What watches over a run (rcjax/train/guards.py); 0 turns a guard off. Steps whose loss or gradient is not finite
    # change nothing and are counted.
    config.guards = ConfigDict(
        dict(
            skips=10,  # steps in a row that are not finite after which the run ends, with WORKDIR/dumps
            spike=8.0,  # a loss so many standard deviations above the mean of the last 64 is a spike, and is said
            rollback=0,  # spikes in a row after which the run goes back to an earlier checkpoint, and on with new data
            divergence_every=0,  # steps between comparisons of parameters that several devices hold, on whatever host
            hang=1800.0,  # seconds without a finished step after which every thread's stack is printed
        )
    )
    config.wandb = ""  # project of Weights & Biases that gets the metrics too (pip install wandb)
    config.evaluation = ConfigDict(
        dict(
            problems=0,  # of the held-out split; 0: all
            max_new_tokens=128,
            batch_size=64,
            every=0,  # optimizer steps between evaluations during training, beside it; 0: none
            # Files of benchmarks (--mode=evaluate --benchmarks=...); empty: from the Hub, where it has them.
            data=ConfigDict(dict(humaneval="", humaneval_plus="", mbpp="", mbpp_plus="")),
        )
    )
    config.export = ConfigDict(dict(dtype="float32", max_shard_size="5GB"))
    # Also train the same model on instructions alone, for as many tokens, and put its score beside.
    config.baseline = False
    return config


def get_large_config() -> ConfigDict:
    """What the configs of models of a billion parameters and more have in common: bfloat16 over many chips."""
    config = get_config()
    config.sharding.preset = "fsdp"
    config.objective.chunk = 512
    config.train.compute_dtype = "bfloat16"
    config.train.remat = "full"
    config.evaluation.max_new_tokens = 512
    config.export.dtype = "bfloat16"
    return config
