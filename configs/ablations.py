"""The method's ablations, on any of the other configs.

    python launch.py --mode=ablate --config=configs/ablations.py:tiny --workdir=runs/ablations [--seeds=5]
    python launch.py --mode=ablate --config=configs/ablations.py:tiny --workdir=runs/ablations --rows=curricula,jsd

The part behind the colon names the base: configs/tiny.py, configs/ds67b.py, ... Each row below is that config with what
stands in it; --rows takes groups (paper, curricula, objectives, teachers) and rows, and --config.base.FIELD=VALUE
changes all of them. One row of it alone, as an ordinary run:

    python launch.py --config=configs/ablations.py:tiny/blockwise --workdir=runs/blockwise

The six rows of `paper` are those of ReflectionCoder's ablation table (arXiv 2405.17057). There, on DS-6.7B, HumanEval
and MBPP+ are 74.4 and 63.2 (instructions), 77.4 and 66.5 (reflection_ce), 79.3 and 68.1 (self_distill), 80.5 and 69.6
(full), 78.7 and 67.8 (full_first_source), 77.9 and 66.9 (full_second_source).

Needs what the base needs, and disk for one checkpoint a row and seed. With `tiny` expect an hour or more: the six rows
and five seeds took 90 minutes on 2 CPU cores that had other work too, the command started in two shells, each on a core
of its own (taskset -c 0 python launch.py ..., taskset -c 1 ...). What came out stands in docs/ablations.md.
"""

import importlib

from ml_collections import ConfigDict

SOURCES = {"tiny": ("omissions", "slips")}  # of the traces, first and second; for other bases those of the paper's data
PUBLISHED = ("ReflectionSeq-GPT", "ReflectionSeq-DS")

# group -> row -> what the row changes in the base
ROWS = {
    "paper": {
        "instructions": dict(data=dict(reflection_repeats=0), objective=dict(name="ce", alpha=None)),
        "reflection_ce": dict(objective=dict(name="ce", alpha=None)),
        "self_distill": dict(objective=dict(name="self_distill")),
        "full": dict(),
        "full_first_source": dict(data=dict(sources=())),  # filled in below
        "full_second_source": dict(data=dict(sources=())),
    },
    "curricula": {
        "curriculum_none": dict(curriculum=dict(name="none")),
        "curriculum_all": dict(curriculum=dict(name="all")),
        "sequential_block": dict(curriculum=dict(name="sequential_block")),
        "random_block": dict(curriculum=dict(name="random_block")),
        "sequential_token": dict(curriculum=dict(name="sequential_token")),
        "random_token": dict(curriculum=dict(name="random_token")),
        "mixture": dict(curriculum=dict(name="mixture", mixture=("block", "random_block", "random_token"))),
        "block_code_first": dict(curriculum=dict(block_order=("CODE", "EXECUTION", "TEXT"))),
        "rate_cosine": dict(curriculum=dict(rate=dict(shape="cosine"))),
        "rate_early": dict(curriculum=dict(rate=dict(end=0.33))),  # all is hidden after a third of the training
        "rate_hold": dict(curriculum=dict(rate=dict(shape="hold", start=0.25, end=0.75))),
    },
    "objectives": {
        "reference": dict(objective=dict(alpha=None)),
        "blockwise": dict(objective=dict(name="blockwise")),
        "answer_ce": dict(  # the student's answer alone: nothing of the teacher's view, and no distillation
            objective=dict(name="table", alpha=None, teacher_ce={}, student_ce=dict(ANSWER=1.0), distill={})
        ),
        "reverse_kl": dict(objective=dict(divergence="reverse_kl")),
        "jsd": dict(objective=dict(divergence="jsd", beta=0.5)),
        "temperature_2": dict(objective=dict(temperature=2.0)),
        "alpha_low": dict(objective=dict(alpha=0.2)),
        "alpha_high": dict(objective=dict(alpha=0.8)),
    },
    "teachers": {"teacher_ema": dict(teacher=dict(name="ema", decay=0.99))},
}


def get_config(which: str = "tiny") -> ConfigDict:
    """``BASE``: base config, rows and their groups, for --mode=ablate; ``BASE/ROW``: the config of one row."""
    name, _, row = which.partition("/")
    try:
        base = importlib.import_module(f"configs.{name}").get_config()
    except ModuleNotFoundError:
        raise ValueError(f"{which}: there is no configs/{name}.py") from None
    base.objective.name = "reference"
    base.curriculum.name = "block"
    base.checkpoint.keep = 1
    base.baseline = False
    if name == "tiny":
        base.build.problems = 4400
        base.build.heldout = 400
        base.build.teacher = ",".join(SOURCES[name])
    config = ConfigDict()
    config.base = base
    config.groups = {group: tuple(rows) for group, rows in ROWS.items()}  # in order, which a ConfigDict does not keep
    config.rows = {name: changes for rows in ROWS.values() for name, changes in rows.items()}
    sources = SOURCES.get(name, PUBLISHED)
    config.rows.full_first_source.data.sources = sources[:1]
    config.rows.full_second_source.data.sources = sources[1:]
    if not row:
        return config
    from rcjax.ablation import row_config

    return row_config(config, row)
