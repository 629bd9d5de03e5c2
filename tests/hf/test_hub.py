"""A model is found where the user says it is: here, in the cache, or on a Hub that is asked for no more than needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rcjax.hf.hub import HubError, model_directory
from tests.hf.hub_server import COMMIT, OTHER_COMMIT, serve

ROOT = Path(__file__).resolve().parents[2]
# Runs in a fresh interpreter, since huggingface_hub reads its environment when it is imported.
SCRIPT = """
import json, sys
from rcjax.hf.hub import HubError, model_directory
for source in json.loads(sys.argv[1]):
    try:
        print(json.dumps(["directory", str(model_directory(source, weights=json.loads(sys.argv[2])))]))
    except HubError as error:
        print(json.dumps(["error", str(error)]))
"""
# No connection leaves this interpreter, and none is looked up.
BLOCKED = """
import socket
def refuse(*arguments, **settings):
    raise AssertionError(f"the network was touched: {arguments}")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


def ask(sources: list[str], home: Path, endpoint: str = "http://127.0.0.1:9", weights=True, code=SCRIPT, **environment):
    """[(what, text)] of each source; port 9 is closed."""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(sources), json.dumps(weights)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=home,
        env={
            "PATH": "",
            "HOME": str(home),
            "HF_HOME": str(home / "hf"),
            "HF_ENDPOINT": endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONPATH": str(ROOT),
            **environment,
        },
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def repository(directory: Path, weights: str = "shards") -> Path:
    """Files as they lie on the Hub, some of which are not for us."""
    directory.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (directory / name).write_text(json.dumps({"file": name}))
    for name in ("README.md", "pytorch_model.bin", "consolidated.safetensors", "tf_model.h5", "training_args.bin"):
        (directory / name).write_text(f"not for us: {name}")
    if weights == "shards":
        shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        for shard in shards:
            (directory / shard).write_text(shard)
        index = {"weight_map": {"a": shards[0], "b": shards[1], "c": shards[0]}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    elif weights == "single":
        (directory / "model.safetensors").write_text("single")
    return directory


def cached(home: Path, name: str, source: Path, commit: str = COMMIT, ref: str | None = "main") -> Path:
    """Puts a repository into a cache as huggingface_hub lays it out; returns the snapshot."""
    folder = home / "hf" / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir(exist_ok=True)
    for file in source.iterdir():
        blob = folder / "blobs" / f"{commit}{file.name}"
        blob.write_bytes(file.read_bytes())
        os.symlink(os.path.relpath(blob, snapshot), snapshot / file.name)
    if ref:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return snapshot


OURS = {"config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}
SHARDS = {"model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}


def test_a_local_directory_is_taken_as_it_is_and_never_touches_the_network(tmp_path):
    local = repository(tmp_path / "org" / "model")
    assert ask(["org/model", str(local), f"{local}/"], tmp_path, code=BLOCKED + SCRIPT) == [
        ("directory", "org/model"),
        ("directory", str(local)),
        ("directory", str(local)),
    ]
    assert not (tmp_path / "hf").exists()


def test_reading_a_local_model_and_its_tokenizer_never_touches_the_network(tmp_path):
    from rcjax.hf.tokenizer import save_tokenizer, train_tokenizer
    from tests.hf.test_load import CONFIGS, write

    config = CONFIGS["llama"]
    save_tokenizer(train_tokenizer(["abc"], 300), tmp_path / "model")
    write(tmp_path / "model", config)
    code = """
import sys, json, pathlib
from rcjax.hf.hub import model_directory
from rcjax.hf.load import load_model
from rcjax.hf.tokenizer import load_tokenizer
from rcjax.hf.vocabulary import add_block_tokens
directory = model_directory(json.loads(sys.argv[1])[0])
load_model(directory)
add_block_tokens(load_tokenizer(directory))
print(json.dumps(["read", "all"]))
"""
    assert ask([str(tmp_path / "model")], tmp_path, code=BLOCKED + code, JAX_PLATFORMS="cpu") == [("read", "all")]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/model", "^/no/such/model does not exist; give the directory"),
        ("./model", r"^\./model does not exist;"),
        ("../org/model", "does not exist;"),
        ("~/model", "^~/model does not exist;"),
        ("runs/tiny/export", "does not exist;"),
        ("models\\llama", "does not exist;"),
        ("llama", "^'llama' is neither a directory nor a Hub id; give a directory or organisation/name"),
        ("org/my model", "neither a directory nor a Hub id"),
        ("org/model@", "neither a directory nor a Hub id"),
        ("", "neither a directory nor a Hub id"),
    ],
)
def test_what_is_no_directory_and_no_hub_id_is_refused_without_asking(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubError, match=message):
        model_directory(source)


def test_a_file_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(HubError, match=r"model\.safetensors is a file; give the directory that it lies in"):
        model_directory(str(tmp_path / "model.safetensors"))


def test_a_cache_serves_without_a_network(tmp_path):
    one = cached(tmp_path, "org/model", repository(tmp_path / "source"))
    other = cached(tmp_path, "org/model", repository(tmp_path / "older", "single"), OTHER_COMMIT, "v1")
    sources = ["org/model", "org/model@main", "org/model@v1", f"org/model@{OTHER_COMMIT}"]
    found = [("directory", str(path)) for path in (one, one, other, other)]
    assert ask(sources, tmp_path, code=BLOCKED + SCRIPT, HF_HUB_OFFLINE="1") == found
    assert ask(sources[:3], tmp_path) == found[:3]  # not offline by name, but nobody answers


def test_what_the_cache_lacks_is_said_without_a_network(tmp_path):
    cached(tmp_path, "org/half", repository(tmp_path / "half"))
    shard = "model-00002-of-00002.safetensors"
    (tmp_path / "hf/hub/models--org--half/snapshots" / COMMIT / shard).unlink()
    cached(tmp_path, "org/pickle", repository(tmp_path / "pickle", "none"))
    sources = ["org/model", "org/half", "org/pickle"]
    said = ask(sources, tmp_path, HF_HUB_OFFLINE="1")
    assert said == [
        (
            "error",
            f"org/model is not at hand: HF_HUB_OFFLINE is set and the cache {tmp_path}/hf/hub does not hold all of it; "
            "unset it to download",
        ),
        ("error", f"org/half lacks {shard}, which its model.safetensors.index.json names; try again with a network"),
        (
            "error",
            "org/pickle has no model.safetensors, and other forms of weights are not read; convert it at "
            "https://huggingface.co/spaces/safetensors/convert",
        ),
    ]
    assert ask(["org/half", "org/pickle"], tmp_path, weights=False, HF_HUB_OFFLINE="1") == [
        ("directory", str(tmp_path / f"hf/hub/models--org--{name}/snapshots" / COMMIT)) for name in ("half", "pickle")
    ]
    [(what, text)] = ask(["org/model"], tmp_path)
    assert what == "error"
    assert text.startswith("org/model is not at hand: http://127.0.0.1:9 can not be reached (")
    assert text.endswith("does not hold all of it; check the network, or give a local directory")
    assert "\n" not in text


def test_the_hub_is_asked_for_what_is_needed_and_once(tmp_path):
    repositories = {
        "org/model": {"main": repository(tmp_path / "a"), "v1": repository(tmp_path / "b", "single")},
        "org/single": {"main": repository(tmp_path / "c", "single")},
    }
    with serve(repositories) as hub:
        [(what, where)] = ask(["org/model"], tmp_path, hub.endpoint, weights=False)
        assert (what, Path(where).name) == ("directory", COMMIT)
        assert hub.downloaded() == OURS | {"model.safetensors.index.json"}
        [(what, again)] = ask(["org/model"], tmp_path, hub.endpoint)
        assert (what, again) == ("directory", where)
        assert hub.downloaded() == OURS | SHARDS
        for name in OURS | SHARDS:
            assert (Path(where) / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
        hub.asked.clear()
        answers = ask(["org/model", "org/single", "org/model@v1"], tmp_path, hub.endpoint)
        assert [what for what, _ in answers] == ["directory"] * 3
        assert [Path(directory).name for _, directory in answers] == [COMMIT, COMMIT, OTHER_COMMIT]
        asked = [path for path in hub.asked if "/resolve/" in path]
        assert not any(path.removeprefix("HEAD ").startswith("org/model/") and COMMIT in path for path in asked)
        assert hub.downloaded() == OURS | {"model.safetensors"}
    # And now that the Hub is gone, all of it is still there.
    assert ask(["org/model", "org/single", "org/model@v1"], tmp_path, hub.endpoint) == answers
    assert ask(["org/model"], tmp_path, HF_HUB_OFFLINE="1", code=BLOCKED + SCRIPT) == answers[:1]


def test_what_the_hub_refuses_is_said_in_a_sentence(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "README.md").write_text("x")
    repositories = {
        "org/pickle": {"main": repository(tmp_path / "a", "none")},
        "org/gated": {"main": repository(tmp_path / "b")},
        "org/data": {"main": empty},
        "org/broken": {"main": repository(tmp_path / "c", "single")},
    }
    with serve(repositories) as hub:
        hub.gated.add("org/gated")
        hub.broken.add("model.safetensors")
        sources = ["org/nothing", "org/pickle@v9", "org/gated", "org/pickle", "org/data", "org/broken"]
        said = ask(sources, tmp_path, hub.endpoint, HF_HUB_DOWNLOAD_TIMEOUT="2")
    assert [what for what, _ in said] == ["error"] * len(sources)
    texts = [text for _, text in said]
    assert texts[:5] == [
        f"org/nothing is neither a directory nor a repository at {hub.endpoint}; check its spelling, or log in with "
        "`hf auth login` where it is private",
        "org/pickle@v9: the repository has no revision 'v9'; check its spelling",
        f"org/gated is open only to those who accepted its terms; do so at {hub.endpoint}/org/gated and log in with "
        "`hf auth login`",
        "org/pickle has no model.safetensors, and other forms of weights are not read; convert it at "
        "https://huggingface.co/spaces/safetensors/convert",
        "org/data has no config.json; give a repository in the form that transformers loads",
    ]
    assert texts[5].startswith("org/broken can not be ")
    assert "\n" not in texts[5]
