"""Training steps against Tunix on the same Llama and the same tokens: supervised, and distilling a frozen teacher.

    python -m benchmarks.tunix [--batch=8] [--length=512] [--vocab=8192] [--rounds=5]

Tunix's own trainers, models and jitted steps; its teacher's forward pass is jitted too. Every token carries a label and
all examples are of one length, so that nobody pads. Both start from the same weights; losses must agree before and
after a step.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict
from tunix.distillation import distillation_trainer, strategies
from tunix.models.llama3 import model as tunix_llama
from tunix.sft import peft_trainer

from benchmarks.harness import alternate, median, ratio, record
from benchmarks.step import small_model
from rcjax.blocks import Region
from rcjax.host_devices import one_device_per_core
from rcjax.host_memory import ask_for_huge_pages
from rcjax.model import LlamaConfig, init_params
from rcjax.objective import make_objective
from rcjax.packing import assemble
from rcjax.sharding import make_mesh
from rcjax.train.state import init_state, make_optimizer, state_shardings
from rcjax.train.step import LossSettings, make_steps
from rcjax.views import ExampleViews, View

RATE = 1e-4
EVERYTHING = dict.fromkeys(Region.__members__, 1.0)


def tunix_model(config: LlamaConfig, params) -> nnx.Module:
    """Tunix's Llama with our parameters."""
    made = tunix_llama.Llama3(
        tunix_llama.ModelConfig(
            num_layers=config.num_layers,
            vocab_size=config.vocab_size,
            embed_dim=config.hidden_size,
            hidden_dim=config.intermediate_size,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            num_kv_heads=config.num_kv_heads,
            rope_theta=int(config.rope_theta),
            norm_eps=config.rms_norm_eps,
        ),
        rngs=nnx.Rngs(0),
    )

    def put(variable, value):
        assert variable[...].shape == value.shape, (variable[...].shape, value.shape)
        variable[...] = jnp.asarray(value)

    put(made.embedder.input_embedding, params["embed"]["embedding"])
    put(made.final_norm.w, params["norm"]["scale"])
    put(made.lm_head.w, params["head"]["kernel"])
    for index, layer in enumerate(made.layers):
        ours = jax.tree.map(lambda leaf, index=index: leaf[index], params["layers"])
        put(layer.input_layernorm.w, ours["attention_norm"]["scale"])
        put(layer.post_attention_layernorm.w, ours["mlp_norm"]["scale"])
        for theirs, name in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("o_proj", "output")):
            put(getattr(layer.attn, theirs).w, ours["attention"][name]["kernel"])
        for name in ("gate", "up", "down"):
            put(getattr(layer.mlp, f"{name}_proj").kernel, ours["mlp"][name]["kernel"])
    return made


def tunix_inputs(tokens: np.ndarray) -> dict[str, jax.Array]:
    """What Tunix's models take, from int32 [B, L]."""
    batch, length = tokens.shape
    return {
        "positions": jnp.broadcast_to(jnp.arange(length), (batch, length)),
        "attention_mask": jnp.broadcast_to(jnp.tri(length, dtype=bool), (batch, length, length)),
    }


class Tunix:
    """One of Tunix's trainers, driven a step at a time by the functions that its ``train`` calls."""

    def __init__(self, trainer, tokens: np.ndarray, kind):
        self._trainer = trainer
        self._step, _ = trainer.jit_train_and_eval_step()
        self._input = kind(input_tokens=jnp.asarray(tokens), input_mask=jnp.ones(tokens.shape, jnp.int32))

    def __call__(self) -> float:
        loss, _, _ = self._step(self._trainer._prepare_inputs(self._input))
        return float(jax.block_until_ready(loss))


def optimizer() -> optax.GradientTransformation:
    return optax.adamw(RATE, weight_decay=0.0)


def tunix_sft(config: LlamaConfig, params, tokens: np.ndarray) -> Tunix:
    settings = peft_trainer.TrainingConfig(eval_every_n_steps=10**9)
    trainer = peft_trainer.PeftTrainer(tunix_model(config, params), optimizer(), settings)
    more = tunix_inputs(tokens)
    trainer = trainer.with_gen_model_input_fn(
        lambda x: {"input_tokens": x.input_tokens, "input_mask": x.input_mask, **more}
    )
    return Tunix(trainer, tokens, peft_trainer.TrainingInput)


def tunix_distillation(config: LlamaConfig, params, teacher_params, tokens: np.ndarray) -> Tunix:
    more = tunix_inputs(tokens[:, :-1])

    def forward(model, input_tokens, input_mask):
        return model(input_tokens[:, :-1], more["positions"], None, more["attention_mask"])[0]

    strategy = strategies.LogitStrategy(
        student_forward_fn=forward,
        teacher_forward_fn=nnx.jit(forward),
        labels_fn=lambda input_tokens, input_mask: jax.nn.one_hot(input_tokens[:, 1:], config.vocab_size),
        temperature=1.0,
        alpha=0.5,
    )
    settings = distillation_trainer.TrainingConfig(eval_every_n_steps=10**9)
    trainer = distillation_trainer.DistillationTrainer(
        tunix_model(config, params), tunix_model(config, teacher_params), strategy, optimizer(), settings
    )
    return Tunix(trainer, tokens, distillation_trainer.TrainingInput)


class Ours:
    """The trainer's step; one microbatch of all rows."""

    def __init__(self, config: LlamaConfig, params, teacher_params, tokens: np.ndarray, chunk: int):
        mesh = make_mesh({"data": -1})
        fields = dict(learning_rate=RATE, warmup_ratio=0.0, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=1e9)
        tx, _ = make_optimizer(ConfigDict(fields), 1_000_000)
        shardings = state_shardings(config, tx, mesh)
        taught = teacher_params is not None
        table = dict(student_ce=EVERYTHING, distill=EVERYTHING) if taught else dict(teacher_ce=EVERYTHING)
        objective = make_objective("table", alpha=0.5 if taught else None, **table)
        settings = LossSettings(model=config, objective=objective, teacher=config if taught else None, chunk=chunk)
        self._steps = make_steps(settings, tx, lambda step: RATE, shardings, mesh)
        views = [self._views(row, taught) for row in tokens]
        arrays = assemble(
            views,
            [[number] for number in range(len(views))],
            row_length=tokens.shape[1] - 1,
            rows_per_microbatch=len(views),
            own_teacher=not taught,
        )
        self._microbatch = {name: jax.device_put(array[0], self._steps.row_sharding) for name, array in arrays.items()}
        self._mesh, self._teacher = mesh, jax.tree.map(jnp.array, teacher_params) if taught else None
        with jax.set_mesh(mesh):
            self._state = init_state(config, tx, shardings, 0, jax.tree.map(jnp.array, params))
            self._sums = self._steps.zeros()

    @staticmethod
    def _views(tokens: np.ndarray, taught: bool) -> ExampleViews:
        """All of a row, every position labelled."""
        slots = np.arange(len(tokens) - 1, dtype=np.int32)
        view, ones, none = View(tokens[:-1], slots), np.ones(len(slots), np.float32), np.zeros(0, np.float32)
        empty = np.zeros(0, np.int32)
        if not taught:
            return ExampleViews(view, None, None, slots, tokens[1:], ones, empty, empty, empty, none, none, none)
        zeros = np.zeros(len(slots), np.float32)
        return ExampleViews(None, view, view, empty, empty, none, slots, slots, tokens[1:], zeros, ones, ones)

    def __call__(self) -> float:
        with jax.set_mesh(self._mesh):
            self._sums = self._steps.accumulate(self._state.params, self._sums, self._microbatch, self._teacher)
            self._state, self._sums, metrics = self._steps.update(self._state, self._sums)
            jax.block_until_ready(self._state)
        return float(metrics["loss"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    # Tunix's Llama rotates with this theta whatever its config says.
    config = dataclasses.replace(small_model(flags.vocab), rope_theta=1e6)
    params, teacher = (jax.tree.map(np.asarray, init_params(config, jax.random.key(seed))) for seed in (0, 1))
    tokens = np.random.default_rng(0).integers(10, flags.vocab, (flags.batch, flags.length + 1), dtype=np.int32)
    rows = []
    for name, theirs, ours in (
        ("supervised", tunix_sft(config, params, tokens), Ours(config, params, None, tokens, flags.chunk)),
        (
            "frozen teacher",
            tunix_distillation(config, params, teacher, tokens),
            Ours(config, params, teacher, tokens, flags.chunk),
        ),
    ):
        for number in range(2):
            np.testing.assert_allclose(ours(), theirs(), rtol=2e-5, err_msg=f"{name}, step {number}")
        seconds = alternate({"ours": ours, "tunix": theirs}, flags.rounds)
        middle = median(seconds)
        rows.append(
            {
                "step": name,
                "ours, s": middle["ours"],
                "tunix, s": middle["tunix"],
                "tunix / ours": ratio(seconds, "ours", "tunix"),
            }
        )
    record("tunix", f"training step against Tunix, {config.num_params / 1e6:.1f}M parameters", rows, **vars(flags))


if __name__ == "__main__":
    one_device_per_core()  # as launch.py does
    ask_for_huge_pages()  # as launch.py does; peers have them too
    main()
