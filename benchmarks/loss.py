"""The vocabulary loss against the dense one: peak memory, time, and how far its gradient is off.

    python -m benchmarks.loss [--vocab=32768] [--labels=8192] [--width=256] [--rounds=5]

Cross-entropy and forward KL over pairs of labelled positions, forward and backward, float32. Dense is what one writes
first: project every labelled position, log-softmax, gradient by JAX. Each runs in a process of its own, so that its
peak is its own; time is taken by turns in a third.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rcjax.host_memory import ask_for_huge_pages

MIB = 2**20


def memory(field: str) -> int:
    """Bytes of a field of /proc/self/status: VmRSS (now) or VmHWM (peak)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no such field; this benchmark needs Linux")


def inputs(flags):
    """Hidden states [1, 2 P, D], head [D, V] and pair labels of P positions."""
    import jax
    import jax.numpy as jnp

    pairs, width = flags.labels // 2, flags.width
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (1, 2 * pairs, width))
    head = jax.random.normal(keys[1], (width, flags.vocab)) * width**-0.5
    labels = {
        "single_slots": jnp.zeros((1, 1), jnp.int32),
        "single_targets": jnp.zeros((1, 1), jnp.int32),
        "single_ce": jnp.zeros((1, 1)),
        "pair_teacher_slots": jnp.arange(pairs)[None],
        "pair_student_slots": pairs + jnp.arange(pairs)[None],
        "pair_targets": jax.random.randint(keys[2], (1, pairs), 0, flags.vocab),
        **{name: jnp.full((1, pairs), 1 / pairs) for name in ("pair_teacher_ce", "pair_student_ce", "pair_kd")},
    }
    return hidden, head, labels


def programs(flags):
    """name -> compiled (hidden, head, labels) -> (loss, gradients of hidden and head)"""
    import jax
    import jax.numpy as jnp

    from rcjax.losses import vocabulary_loss

    def ours(hidden, head, labels):
        return vocabulary_loss(hidden, head, labels, ce_weight=1.0, kd_weight=1.0, chunk=flags.chunk)[0]

    def dense(hidden, head, labels):
        teacher, student = jnp.split(jax.nn.log_softmax(hidden @ head), 2, axis=1)
        targets = labels["pair_targets"][..., None]
        nll = -jnp.take_along_axis(jnp.concatenate([teacher, student]), jnp.concatenate([targets] * 2), -1)[..., 0]
        fixed = jax.lax.stop_gradient(teacher)
        kl = jnp.sum(jnp.exp(fixed) * (fixed - student), -1)
        ce = jnp.concatenate([labels["pair_teacher_ce"], labels["pair_student_ce"]])
        return jnp.sum(nll * ce) + jnp.sum(kl * labels["pair_kd"])

    return {name: jax.jit(jax.value_and_grad(f, argnums=(0, 1))) for name, f in (("ours", ours), ("dense", dense))}


def peak(flags) -> None:
    """Prints what one of them takes over what its arguments and results take."""
    import jax

    data = jax.block_until_ready(inputs(flags))
    compiled = programs(flags)[flags.peak].lower(*data).compile()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    results = jax.block_until_ready(compiled(*data))
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(results))
    print(json.dumps({"over": memory("VmHWM") - before - kept}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--labels", type=int, default=8192, help="positions, teacher's and student's together")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", choices=("ours", "dense"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.peak:
        peak(flags)
        return
    import jax
    import numpy as np

    from benchmarks.harness import alternate, median, ratio, record

    data = inputs(flags)
    made = programs(flags)
    (loss, grads), (dense_loss, dense_grads) = (made[name](*data) for name in ("ours", "dense"))
    np.testing.assert_allclose(loss, dense_loss, rtol=1e-5)
    error = max(
        float(abs(ours - dense).max() / abs(dense).max()) for ours, dense in zip(grads, dense_grads, strict=True)
    )
    seconds = alternate({n: lambda f=f: jax.block_until_ready(f(*data)) for n, f in made.items()}, flags.rounds)
    middle = median(seconds)
    over = {}
    for name in made:
        command = [sys.executable, "-m", "benchmarks.loss", f"--peak={name}", *sys.argv[1:]]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        over[name] = json.loads(done.stdout)["over"]
    rows = [
        {"": name, "seconds": middle[name], "peak over arguments and gradients, MiB": over[name] / MIB} for name in made
    ]
    rows.append(
        {
            "": "ours / dense",
            "seconds": 1 / ratio(seconds, "ours", "dense"),
            "peak over arguments and gradients, MiB": over["ours"] / over["dense"],
            "largest gradient error, relative": error,
        }
    )
    settings = {key: value for key, value in vars(flags).items() if key != "peak"}
    record("loss", f"vocabulary loss, {flags.labels} labelled positions, vocabulary {flags.vocab}", rows, **settings)


if __name__ == "__main__":
    ask_for_huge_pages()  # as launch.py does; peers have them too
    main()
