"""The templates for clusters, held against the schemas of who reads them; what a submission sends, and says."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config

ROOT = Path(__file__).parents[1]
LAUNCHER = ("aws", "gcp", "machines")
KUBERAY = {"raycluster": "RayCluster", "rayjob": "RayJob"}
SCHEMAS: dict[str, Any] = json.loads((Path(__file__).parent / "kuberay.json").read_text())
"""Of the CRDs of KubeRay 1.7, ray.io/v1: names, types and choices of the fields that the templates have."""
SCRIPTS = ("launch/submit.sh", "cluster/slurm.sh")
SBATCH = {
    "job-name": r"[\w-]+", "nodes": r"\d+(-\d+)?", "ntasks-per-node": r"\d+", "cpus-per-task": r"\d+",
    "exclusive": None, "time": r"\d+:\d\d:\d\d", "output": r"\S+",
}  # fmt: skip
"""Options of ``sbatch``, and what their values look like."""


def template(name: str) -> Any:
    return yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_knows_everything_in_a_launchers_configuration(name: str) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    found = prepare_config(template(name))  # as `ray up` does first
    jsonschema.validate(found, schema)
    with pytest.raises(jsonschema.ValidationError, match="max_workrs"):
        jsonschema.validate(found | {"max_workrs": 1}, schema)
    assert found["head_node_type"] in found["available_node_types"]
    assert any("--env RAY_AUTH_MODE=token" in option for option in found["docker"]["run_options"])
    assert "~/.ray/auth_token" in found["file_mounts"]


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_knows_everything_in_a_template(name: str) -> None:
    found = template(name)
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", KUBERAY[name])
    jsonschema.validate(found, SCHEMAS[found["kind"]])
    with pytest.raises(jsonschema.ValidationError, match="workerGroups"):
        jsonschema.validate({"spec": found["spec"] | {"workerGroups": []}}, SCHEMAS[found["kind"]])
    cluster = found["spec"].get("rayClusterSpec", found["spec"])
    assert cluster["authOptions"] == {"mode": "token"}


def test_a_template_has_the_version_of_ray_that_is_tested() -> None:
    tested = re.search(r"^ray(?:\[.*\])?==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert tested
    for name in KUBERAY:
        spec = template(name)["spec"]
        assert spec.get("rayClusterSpec", spec)["rayVersion"] == tested[1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_has_nothing_to_say(script: str) -> None:
    found = subprocess.run(["shellcheck", ROOT / script], check=False, capture_output=True, text=True)
    assert not found.stdout + found.stderr and found.returncode == 0


def test_sbatch_reads_the_directives() -> None:
    lines = (ROOT / "cluster/slurm.sh").read_text().splitlines()
    first_command = next(place for place, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [line.removeprefix("#SBATCH ") for line in lines[:first_command] if line.startswith("#SBATCH")]
    assert len(directives) == sum(line.startswith("#SBATCH") for line in lines) > 5  # those after a command are ignored
    for directive in directives:
        name, _, value = directive.removeprefix("--").partition("=")
        form = SBATCH[name]
        assert value == "" if form is None else re.fullmatch(form, value), directive


# --- submitting ----------------------------------------------------------------------------------------------------

FAKE = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$SAID"
while [[ $1 != --working-dir ]]; do shift; done
ls "$2" >> "$SAID"
echo "$RAY_AUTH_MODE" >> "$SAID"
"""
"""A ``ray`` that writes down what it is told."""


def submit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    ray_command = folder / "ray"
    ray_command.write_text(FAKE)
    ray_command.chmod(ray_command.stat().st_mode | stat.S_IXUSR)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_AUTH_MODE"}
    environment |= {"PATH": f"{folder}:{os.environ['PATH']}", "SAID": str(folder / "said")}
    command = ["bash", ROOT / "launch/submit.sh", *arguments]
    return subprocess.run(command, check=False, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("detach", [True, False])
def test_only_the_studys_file_travels(tmp_path: Path, detach: bool) -> None:
    config = tmp_path / "my study.yaml"
    config.write_text("study: here\n")
    study = "s3://lab/My Study?endpoint_override=minio:9000"
    options = ("--detach",) if detach else ()
    found = submit(tmp_path, *options, str(config), study, "--set", "runtime.gangs=8")
    assert found.returncode == 0, found.stderr
    job, report = found.stdout.splitlines()
    name = job.split()[1].rstrip(":")
    assert re.fullmatch(r"My-Study-\d{8}-\d{6}", name)
    assert f"ray job logs --follow {name}" in job and f"ray job stop {name}" in job
    assert report == "its report will be s3://lab/My Study/report.html"
    said = (tmp_path / "said").read_text().splitlines()
    assert said[:4] == ["job", "submit", "--submission-id", name]
    assert ("--no-wait" in said) == detach
    begin = said.index("--")
    assert said[begin + 1 :] == [
        *("pitune", "run", "study.yaml", "--set", f"study={study}", "--address", "auto", "--set", "runtime.gangs=8"),
        *("study.yaml", "token"),
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("one",), "usage: launch/submit.sh [--detach] CONFIG STUDY"),
        (("--detach", "one"), "usage: launch/submit.sh"),
        (("missing.yaml", "/study"), "missing.yaml: no such file; give a study's YAML"),
    ],
)
def test_what_cannot_be_submitted_is_one_line(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    found = submit(tmp_path, *arguments)
    assert found.returncode == 2 and not found.stdout
    assert says in found.stderr and len(found.stderr.splitlines()) == 1
    assert not (tmp_path / "said").exists()
