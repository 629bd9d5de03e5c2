"""The shipped configs make the models that they name, and their texts say what a user needs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from rcjax.hf.base_model import shape_fields
from rcjax.hf.inspect import shipped_configs
from rcjax.layout import layout_of, mesh_of
from rcjax.model import LlamaConfig
from rcjax.train.program import make_curriculum, objective_of
from rcjax.train.state import check_mesh

DIRECTORY = Path(__file__).parent.parent / "configs"
CONFIGS = shipped_configs(DIRECTORY)

# Parameters of the published checkpoints with the tables as they stand there (rows), from their safetensors' headers
# or model cards: what a shape that is off in any field would miss.
PUBLISHED = {
    "ds13b": (32256, 1_346_471_936),
    "ds67b": (32256, 6_740_512_768),
    "ds33b": (32256, 33_342_991_360),
    "cl7b": (32000, 6_738_415_616),
    "cl34b": (32000, 33_743_970_304),
    "qwen25coder7b": (152064, 7_615_616_512),
    "smollm2_135m": (49152, 134_515_008),
}


def model_of(name: str, **changes) -> LlamaConfig:
    settings = CONFIGS[name].model
    fields = {"vocab_size": settings.vocab_size, "vocab_multiple": settings.vocab_multiple, **changes}
    return LlamaConfig(**shape_fields(settings), **fields)


def test_every_promised_config_is_there():
    assert set(PUBLISHED) | {"tiny"} == set(CONFIGS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_is_the_published_model(name):
    rows, params = PUBLISHED[name]
    assert model_of(name, vocab_size=rows).num_params == params


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_can_be_exported_and_read_back(name):
    model = model_of(name, vocab_multiple=1)
    assert LlamaConfig.from_hf(model.to_hf()) == model


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_settings_are_valid(name):
    config = CONFIGS[name]
    model = model_of(name)
    assert config.model.init.count("/") == 1
    assert config.packing.row_length >= 2 * config.data.max_length  # both views of the longest example
    assert config.data.max_length <= config.model.max_position_embeddings
    model.check_length(config.data.max_length, "config.data.max_length")
    assert make_curriculum(config.curriculum, objective_of(config.objective)).name == "block"
    check_mesh(model, layout_of(config), mesh_of(config))  # over the eight virtual devices of the tests


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_text_says_what_to_type_what_it_takes_and_what_to_expect(name):
    text = ast.get_docstring(ast.parse((DIRECTORY / f"{name}.py").read_text()))
    for sign in (f"python launch.py --config=configs/{name}.py", "GiB", "Expect", "arXiv"):
        assert sign in text, sign
