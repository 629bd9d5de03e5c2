"""What docs/launching.md tells people to copy is well formed, and names flags and settings that there are."""

import re
import subprocess
import sys

import yaml

from tests.processes import ROOT

PAGE = (ROOT / "docs" / "launching.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)


def test_manifests_are_yaml_and_scripts_are_bash():
    assert [kind for kind, _ in BLOCKS].count("yaml") == 1
    for kind, text in BLOCKS:
        if kind == "bash":
            done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
            assert not done.returncode, done.stderr
    (manifest,) = (yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml")
    name, (hosts,) = manifest["metadata"]["name"], manifest["spec"]["replicatedJobs"]
    job = hosts["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    (port,) = container["ports"]
    # What JobSet calls pod 0 of job 0, and how many there are.
    assert f"--coordinator={name}-{hosts['name']}-0-0.{name}:{port['containerPort']} " in container["args"][0]
    assert f"--num_processes={job['completions']} " in container["args"][0]
    assert job["parallelism"] == job["completions"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in job["template"]["spec"]["volumes"]
    }


def test_a_job_is_requeued_after_exit_code_75_alone(tmp_path):
    (script,) = (text for kind, text in BLOCKS if kind == "bash" and "#SBATCH" in text)
    for name, text in (("srun", 'exit "$CODE"'), ("scontrol", f'echo "$@" >> {tmp_path}/requeued')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    for code, requeued in ((0, ""), (2, ""), (75, "requeue 9\n")):
        done = subprocess.run(
            ["bash", "-c", script], env={"PATH": f"{tmp_path}:/usr/bin:/bin", "CODE": str(code), "SLURM_JOB_ID": "9"}
        )
        assert done.returncode == code
        file = tmp_path / "requeued"
        assert (file.read_text() if file.exists() else "") == requeued


def test_flags_and_configs_are_those_that_there_are():
    done = subprocess.run([sys.executable, "launch.py", "--helpfull"], cwd=ROOT, capture_output=True, text=True)
    ours = set(re.findall(r"--(?:\[no\])?(\w+)", done.stdout))
    of_others = {"zone", "worker", "command", "cluster", "workload", "signal", "time", "requeue", "nodes"}
    named = set(re.findall(r"--([a-z_]+)(?![\w-])", PAGE))
    assert {"distributed", "coordinator", "num_processes", "process_id", "join_timeout"} <= named
    assert named <= ours | of_others
    for config in re.findall(r"configs/\w+\.py", PAGE):
        assert (ROOT / config).exists(), config
