"""A model on the devices of two processes is exported as one process would, and no process is left waiting."""

from __future__ import annotations

import hashlib
import json
import os
import sys

import pytest

from rcjax.hf.export import export
from rcjax.hf.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from tests.hf.export_worker import small_model
from tests.processes import ended, environment, free_port, start


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A tokenizer and its directory."""
    tokenizer = train_tokenizer(["def add(a, b):\n    return a + b", "Write a function that adds."] * 3, 300)
    directory = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    save_tokenizer(tokenizer, directory)
    return load_tokenizer(directory), directory


def run_processes(tokenizer, *jobs, processes=2):
    """Exit code, lines of output and errors of each process; all are ended when one takes too long."""
    command = [sys.executable, "-m", "tests.hf.export_worker", f"127.0.0.1:{free_port()}", str(processes)]
    commands = [[*command, str(index), str(tokenizer[1]), *map(json.dumps, jobs)] for index in range(processes)]
    return [(code, out.splitlines(), err) for code, out, err in ended(start(commands, [environment(4)] * processes))]


def digests(directory):
    """File name -> sha256."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


def test_two_processes_write_the_files_of_one_and_stay_in_step_after_an_error(tokenizer, tmp_path):
    config, params = small_model(tokenizer[0])
    cases = {
        "split": dict(dtype="bfloat16", max_shard_size="40KB", mesh=dict(fsdp=4, tensor=2)),
        "copies": dict(dtype="float32", max_shard_size="5GB", mesh=dict(data=8)),
    }
    (tmp_path / "file").write_text("mine")
    jobs = [dict(directory=f"{tmp_path}/file", mesh=dict(fsdp=8))]
    said = [f"error: {tmp_path}/file is a file; name a directory to write or move the file away"]
    for name, case in cases.items():
        jobs.append(dict(directory=f"{tmp_path}/{name}/model", **case))
        one = {key: value for key, value in case.items() if key != "mesh"}
        report = export(config, params, tokenizer[0], tmp_path / f"{name} alone" / "model", **one)
        assert report.num_files == (1 if name == "copies" else 3)
        said.append(f"logit_difference={report.logit_difference}")
    for code, output, errors in run_processes(tokenizer, *jobs):
        assert code == 0, errors
        assert [line for line in output if line.startswith(("error", "logit"))] == said
    for name in cases:
        assert digests(tmp_path / name / "model") == digests(tmp_path / f"{name} alone" / "model")
        assert os.listdir(tmp_path / name) == ["model"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_ends_all_processes_with_one_sentence(tokenizer, tmp_path):
    # Settings and the first tensors can be written, and then no more.
    job = dict(directory=f"{tmp_path}/model", mesh=dict(fsdp=8), file_limit=60_000)
    for code, output, errors in run_processes(tokenizer, job):
        assert code == 1, errors
        sentence = f"error: {tmp_path}/model can not be written (File too large); free space or name another place"
        assert sentence in output
        assert "Traceback" not in errors
    assert os.listdir(tmp_path) == []
