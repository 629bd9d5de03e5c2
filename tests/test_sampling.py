"""Draws follow the exact distribution, and depend on (seed, sample, position) alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rcjax import decode
from rcjax import model as llama
from rcjax.decode.sampling import Filters, Sampling, choose
from tests.model.peers import CONFIGS, make_config, random_params


def exact(logits, temperature=1.0, top_k=0, top_p=1.0):
    """Probabilities by sorting, in float64: first the k most likely, of these the fewest with a share of ``top_p``."""
    order = np.argsort(-logits, kind="stable")
    shares = np.exp((logits[order] - logits[order[0]]) / temperature)
    if top_k:
        shares[top_k:] = 0
    shares /= shares.sum()
    shares[1 + np.searchsorted(np.cumsum(shares), top_p * (1 - 1e-9)) :] = 0
    result = np.zeros_like(shares)
    result[order] = shares / shares.sum()
    return result


def check(counts, shares):
    """Chi-square at a level of 1 in 1,000, rare outcomes put together; impossible ones never came."""
    assert not counts[shares == 0].any()
    total = counts.sum()
    rare = shares * total < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(shares[~rare], shares[rare].sum()) * total
    if expected[-1] < 1:
        observed, expected = observed[:-1], expected[:-1] * total / expected[:-1].sum()
        observed[np.argmax(expected)] += total - observed.sum()
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    assert len(observed) > 1


OPTIONS = [
    dict(),
    dict(temperature=0.6),
    dict(top_k=7),
    dict(top_p=0.9),
    dict(temperature=1.5, top_k=9, top_p=0.7),
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", [50, 1000])
def test_draws_follow_the_exact_distribution(size, options):
    rng = np.random.default_rng(size)
    logits = 1.5 * rng.normal(size=size)
    allowed = rng.random(size) < 0.9
    columns = 30_000
    sampling = Sampling(
        np.float32(options.get("temperature", 1)), np.float32(options.get("top_k", 0)),
        np.float32(options.get("top_p", 1)), np.uint32(5),
    )  # fmt: skip
    drawn = jax.jit(choose, static_argnums=2)(
        jnp.tile(jnp.asarray(logits, jnp.float32)[:, None], columns), allowed,
        Filters(True, "top_k" in options, "top_p" in options), sampling,
        np.arange(columns, dtype=np.uint32), np.full(columns, 3, np.int32),
    )  # fmt: skip
    shares = exact(np.where(allowed, logits, -np.inf), **options)
    check(np.bincount(drawn, minlength=size), shares)


@pytest.mark.parametrize("options", [dict(temperature=1.0, top_k=4), dict(temperature=0.7, top_p=0.9)])
def test_generated_pairs_follow_the_model(options):
    """Two tokens from the whole engine: the second is drawn given the first, independently of its draw."""
    config = make_config(num_layers=1)
    params = random_params(config, seed=1, dtype=np.float32)
    prompt = [5, 9, 30, 7]

    def logits(tokens):
        tokens = np.array([tokens], np.int32)
        positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
        hidden = llama.apply(config, params, tokens, positions, np.ones_like(tokens))
        return np.asarray(hidden @ llama.head_kernel(config, params), np.float64)[0, -1]

    first = exact(logits(prompt), **options)
    shares = np.array(
        [p * exact(logits([*prompt, token]), **options) if p else np.zeros(61) for token, p in enumerate(first)]
    )
    drawn = decode.generate(config, params, [prompt] * 2000, max_new_tokens=2, stop_ids=[], seed=7, **options)
    counts = np.zeros((61, 61))
    np.add.at(counts, tuple(np.array(drawn).T), 1)
    check(counts.ravel(), shares.ravel())


def test_draws_depend_on_seed_and_sample_alone():
    config = make_config(**CONFIGS["mistral"])
    params = random_params(config, seed=3, dtype=np.float32)
    rng = np.random.default_rng(4)
    prompts = [rng.integers(3, 61, rng.integers(1, 40)).tolist() for _ in range(5)] * 3
    options = dict(max_new_tokens=25, stop_ids=[5, 8, 13], temperature=0.8, top_p=0.95)
    samples = [1000 + i for i in range(15)]
    wide = decode.generate(config, params, prompts, seed=1, sample_ids=samples, batch_size=16, **options)
    for batch_size in (1, 4):
        assert (
            decode.generate(config, params, prompts, seed=1, sample_ids=samples, batch_size=batch_size, **options)
            == wide
        )
    turned = decode.generate(config, params, prompts[::-1], seed=1, sample_ids=samples[::-1], batch_size=4, **options)
    assert turned[::-1] == wide
    alone = decode.generate(config, params, prompts[7:8], seed=1, sample_ids=samples[7:8], **options)
    assert alone == wide[7:8]
    assert len({len(new) for new in wide}) > 3
    assert wide[0] != wide[5] != wide[10]  # one prompt, three samples
    assert wide != decode.generate(config, params, prompts, seed=2, sample_ids=samples, batch_size=16, **options)
    default = decode.generate(config, params, prompts, seed=1, batch_size=16, **options)
    assert default == decode.generate(config, params, prompts, seed=1, sample_ids=range(15), **options)


def test_a_low_temperature_and_one_choice_are_greedy():
    config = make_config(num_layers=1)
    params = random_params(config, seed=5, dtype=np.float32)
    prompts = [[3, 4], [9, 8, 7], [60]]
    greedy = decode.generate(config, params, prompts, max_new_tokens=12, stop_ids=[])
    for options in (dict(temperature=1e-4), dict(temperature=3.0, top_k=1), dict(temperature=3.0, top_p=1e-6)):
        assert decode.generate(config, params, prompts, max_new_tokens=12, stop_ids=[], **options) == greedy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(temperature=-0.1), "temperature is -0.1; expected 0 "),
        (dict(temperature=float("nan")), "temperature is nan; expected 0 "),
        (dict(top_p=0.0), "top_p is 0.0; expected above 0 and at most 1"),
        (dict(top_p=1.1), "top_p is 1.1"),
        (dict(top_k=-1), "top_k is -1; expected 0 "),
        (dict(seed=-1), "seed is -1; expected 0 to 4294967295"),
        (dict(sample_ids=[1, 2]), "sample_ids are 2, but prompts 1"),
        (dict(sample_ids=[2**32]), "sample_ids hold 4294967296"),
    ],
)
def test_parameters_out_of_range_are_named(options, message):
    config = make_config(num_layers=1)
    params = random_params(config, seed=6, dtype=np.float32)
    with pytest.raises(ValueError, match=message):
        decode.generate(config, params, [[3]], max_new_tokens=1, stop_ids=[], **options)
