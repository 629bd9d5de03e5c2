"""Greedy generation gives what transformers' generate gives, however rows are retired, replaced and laid on devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcjax import decode
from rcjax import model as llama
from rcjax.decode import engine
from rcjax.sharding import make_mesh
from rcjax.train.state import param_shardings
from tests.model.peers import CONFIGS, make_config, random_params, torch, transformers_model


def peer_generate(peer, prompts, max_new_tokens, stops):
    """One prompt at a time: nothing of padding can hide a mistake of ours."""
    results = []
    for prompt in prompts:
        with torch.no_grad():
            out = peer.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=stops,
                pad_token_id=0,
            )
        new = out[0, len(prompt) :].tolist()
        results.append(new[:-1] if new and new[-1] in stops else new)
    return results


def make_prompts(config, count, seed=0, longest=45):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, config.vocab_size, rng.integers(1, longest)).tolist() for _ in range(count)]


@pytest.mark.parametrize("name", CONFIGS)
def test_random_model_equals_transformers(name):
    config = make_config(**CONFIGS[name])
    params = random_params(config, seed=1, dtype=np.float32)
    prompts = make_prompts(config, 7)  # shorter and longer than the windows
    stops = [1, 7, 20]
    ours = decode.generate(config, params, prompts, max_new_tokens=16, stop_ids=stops, batch_size=4)
    assert ours == peer_generate(transformers_model(config, params, torch.float32), prompts, 16, stops)
    assert len({len(new) for new in ours}) > 1  # some were stopped, at different lengths


def test_trained_model_equals_transformers_and_continues_the_pattern():
    """A model that has learnt something: it repeats a pattern of four tokens, then stops."""
    config = make_config(vocab_size=32, num_layers=1, tie_embeddings=True)
    rng = np.random.default_rng(2)
    stop = 1

    def sequence():
        pattern = rng.permutation(np.arange(3, 32))[:4]
        return [0, *np.tile(pattern, 4).tolist(), stop]

    def loss(params, tokens):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1] - 1), (tokens.shape[0], tokens.shape[1] - 1))
        hidden = llama.apply(config, params, tokens[:, :-1], positions, jnp.ones_like(positions))
        logits = jax.nn.log_softmax(hidden @ llama.head_kernel(config, params))
        return -jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1).mean()

    import optax

    params = llama.init_params(config, jax.random.key(0))
    optimizer = optax.adam(1e-2)
    state = optimizer.init(params)

    @jax.jit
    def update(params, state, tokens):
        updates, state = optimizer.update(jax.grad(loss)(params, tokens), state)
        return optax.apply_updates(params, updates), state

    for _ in range(150):
        params, state = update(params, state, np.array([sequence() for _ in range(16)], np.int32))
    prompts = [sequence()[:length] for length in (2, 5, 9, 12, 17)]
    ours = decode.generate(config, params, prompts, max_new_tokens=20, stop_ids=[stop])
    params = jax.tree.map(np.asarray, params)
    assert ours == peer_generate(transformers_model(config, params, torch.float32), prompts, 20, [stop])
    assert any(0 < len(new) < 20 for new in ours)


@pytest.mark.parametrize("slots", [decode.engine.SLOTS, decode.engine.ACCELERATOR_SLOTS])
def test_rows_of_all_lengths_grow_shrink_and_replace_each_other(monkeypatch, slots):
    """The ring wraps, gets more slots and fewer; prompts take several pieces; a row outlives many neighbours."""
    monkeypatch.setattr(decode.engine, "_slots", lambda: slots)
    config = make_config(**CONFIGS["mistral"])
    params = random_params(config, seed=11, dtype=np.float32)
    rng = np.random.default_rng(12)
    lengths = [200, 1, 130, 64, 65, 3, 128, 2, 63, 17, 1, 5]
    prompts = [rng.integers(3, 61, length).tolist() for length in lengths]
    stops = [1]
    ours = decode.generate(config, params, prompts, max_new_tokens=90, stop_ids=stops, batch_size=3)
    assert ours == peer_generate(transformers_model(config, params, torch.float32), prompts, 90, stops)
    assert {len(new) == 90 for new in ours} == {True, False}


def test_prompts_that_begin_alike_share_the_work_and_keep_their_ends(monkeypatch):
    config = make_config(num_layers=1)
    params = random_params(config, seed=13, dtype=np.float32)
    rng = np.random.default_rng(14)
    beginning = rng.integers(3, 61, 150).tolist()
    prompts = [beginning + rng.integers(3, 61, size).tolist() for size in (0, 3, 20, 3, 60)] + [beginning]
    pieces = []
    run_piece = engine._run_piece
    monkeypatch.setattr(engine, "_run_piece", lambda *a: pieces.append(int(a[5])) or run_piece(*a))
    ours = decode.generate(config, params, prompts, max_new_tokens=12, stop_ids=[], batch_size=2)
    assert ours == peer_generate(transformers_model(config, params, torch.float32), prompts, 12, [])
    assert ours[0] == ours[5]
    assert pieces.count(0) == 1  # the first piece is run once; the shortest prompt, given twice, has none of its own


def test_batching_changes_nothing_and_progress_adds_up():
    config = make_config(num_layers=1)
    params = random_params(config, seed=3, dtype=np.float32)
    prompts = make_prompts(config, 13, seed=4, longest=50)
    runs = []
    for batch_size in (1, 4, 64):
        advanced = []
        options = dict(max_new_tokens=9, stop_ids=[5], batch_size=batch_size, on_advance=advanced.append)
        runs.append(decode.generate(config, params, prompts, **options))
        assert sum(advanced) == 13
    assert runs[0] == runs[1] == runs[2]
    assert all(len(new) <= 9 for new in runs[0])


def test_forbidden_and_padding_ids_are_never_generated():
    config = make_config(pad_token_id=2, num_layers=1)
    params = random_params(config, seed=5, dtype=np.float32)
    prompts = make_prompts(config, 6, seed=6)
    free = decode.generate(make_config(num_layers=1), params, prompts, max_new_tokens=20, stop_ids=[])
    favourite = max(range(61), key=[token for new in free for token in new].count)
    banned = decode.generate(config, params, prompts, max_new_tokens=20, stop_ids=[], forbidden_ids=[favourite])
    assert all(len(new) == 20 and not {2, favourite} & set(new) for new in banned)


@pytest.mark.parametrize("tied", [True, False])
def test_padding_of_the_table_is_never_generated(tied):
    config = make_config(num_layers=1, vocab_multiple=32, tie_embeddings=tied)
    params = random_params(config, seed=8, dtype=np.float32)
    prompts = make_prompts(config, 5, seed=9)

    def run(factor):
        """With the padding's weights made huge: half of its logits then beat every token's."""
        if tied:
            table = params["embed"]["embedding"].copy()
            table[61:] *= factor
            changed = {**params, "embed": {"embedding": table}}
        else:
            kernel = params["head"]["kernel"].copy()
            kernel[:, 61:] *= factor
            changed = {**params, "head": {"kernel": kernel}}
        return decode.generate(config, changed, prompts, max_new_tokens=12, stop_ids=[])

    ours = run(1e6)
    assert all(token < 61 for new in ours for token in new)
    assert ours == run(0)


def test_a_length_that_the_rope_type_does_not_allow_is_refused():
    config = make_config(**CONFIGS["dynamic"], max_position_embeddings=32)
    params = random_params(config, seed=10, dtype=np.float32)
    prompts = [[3] * 20, [4] * 25]
    assert len(decode.generate(config, params, prompts, max_new_tokens=7, stop_ids=[])[1]) == 7
    with pytest.raises(ValueError, match=r"longest prompt .* is 33, but rope type 'dynamic'"):
        decode.generate(config, params, prompts, max_new_tokens=8, stop_ids=[])


def test_odd_input():
    config = make_config()
    params = random_params(config, seed=7, dtype=np.float32)
    assert decode.generate(config, params, [], max_new_tokens=4, stop_ids=[]) == []
    assert decode.generate(config, params, [[3]], max_new_tokens=0, stop_ids=[]) == [[]]
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        decode.generate(config, params, [[3], []], max_new_tokens=4, stop_ids=[])
    with pytest.raises(ValueError, match="prompt 0 holds id 61, but the model knows ids 0 to 60"):
        decode.generate(config, params, [[61]], max_new_tokens=4, stop_ids=[])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_stop_fn_ends_a_result_at_the_first_token_for_which_it_says_yes(batch_size):
    config = make_config(num_layers=1)
    params = random_params(config, seed=15, dtype=np.float32)
    prompts = make_prompts(config, 9, seed=16)
    free = decode.generate(config, params, prompts, max_new_tokens=40, stop_ids=[], batch_size=batch_size)
    marks = [new[size] for new, size in zip(free, (0, 1, 5, 15, 16, 17, 30, 39, 20), strict=True)]
    asked = []

    def stop(index, new):
        asked.append((index, len(new)))
        return marks[index] in new

    results = {}
    options = dict(max_new_tokens=40, stop_ids=[], batch_size=batch_size, stop_fn=stop)
    cut = decode.generate(config, params, prompts, **options, on_result=results.__setitem__)
    assert cut == [new[: new.index(mark) + 1] for new, mark in zip(free, marks, strict=True)]
    assert results == dict(enumerate(cut))
    assert len(asked) < sum(map(len, cut))  # not after each token


def test_results_come_as_soon_as_they_are_there():
    config = make_config(num_layers=1)
    params = random_params(config, seed=15, dtype=np.float32)
    prompts = make_prompts(config, 9, seed=16)
    log = []
    ours = decode.generate(
        config, params, prompts, max_new_tokens=40, stop_ids=[], batch_size=2,
        on_result=lambda index, tokens: log.append((index, tokens)), on_advance=log.append,
    )  # fmt: skip
    assert sorted(entry for entry in log if isinstance(entry, tuple)) == list(enumerate(ours))
    assert sum(entry for entry in log if isinstance(entry, int)) == 9
    assert isinstance(log[-1], int)
    assert sum(isinstance(entry, int) for entry in log) >= 5  # two rows, nine prompts


@pytest.mark.parametrize("name", ["qwen2, windows in some layers", "biases, tied, coarse eps"])
@pytest.mark.parametrize("axes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"tensor": 2, "data": 4}, {"fsdp": 8}])
def test_a_mesh_gives_what_one_device_gives(name, axes):
    config = make_config(**CONFIGS[name], vocab_multiple=8)
    params = random_params(config, seed=17, dtype=np.float32)
    prompts = make_prompts(config, 11, seed=18, longest=80)
    mesh = make_mesh(axes)
    laid = jax.tree.map(jax.device_put, params, param_shardings(config, mesh))
    for options in (dict(), dict(temperature=0.9, top_p=0.9, seed=3)):
        options |= dict(max_new_tokens=20, stop_ids=[5, 9, 12, 14, 30, 40], batch_size=8)
        assert decode.generate(config, laid, prompts, **options) == decode.generate(config, params, prompts, **options)
    # Groups of prompts that are not full, and rows that are free again at once.
    results = []
    everything = dict(
        max_new_tokens=20, stop_ids=range(61), batch_size=8, on_result=lambda *result: results.append(result)
    )
    assert decode.generate(config, laid, prompts, **everything) == [[]] * 11
    assert sorted(results) == [(index, []) for index in range(11)]


def test_rows_and_heads_lie_on_their_devices():
    """The cache, the largest thing in memory, is split over all axes of the mesh, and stays so."""
    config = make_config(num_layers=1, vocab_multiple=8)
    params = random_params(config, seed=17, dtype=np.float32)
    laid = jax.tree.map(jax.device_put, params, param_shardings(config, make_mesh({"data": 4, "tensor": 2})))
    seen = []
    chunk = engine._chunk
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_chunk", lambda *a: seen.append([_part(x) for x in jax.tree.leaves(a[2])]) or chunk(*a))
        prompts = make_prompts(config, 12, seed=19)
        decode.generate(config, laid, prompts, max_new_tokens=50, stop_ids=[5], batch_size=8)
    assert len(seen) > 2
    assert {part for parts in seen for part in parts} == {(1 / 4, 1 / 2)}


def _part(cache):
    """What share of rows and heads the first device holds."""
    shape = cache.addressable_shards[0].data.shape
    return shape[0] / cache.shape[0], shape[1] / cache.shape[1]
