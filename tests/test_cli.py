"""The command line: what it refuses, in one line with exit code 2, and what it prints."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from rich.progress import Progress as Bars
from tinystudy import make_study

from pitune.cli import main
from pitune.config import load_config
from pitune.methods import METHODS
from pitune.progress import Stage, StageProgress
from pitune.store import Store
from pitune.tasks.catalogue import load_task
from pitune.watching import recorded

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process; give its exit code, output and errors."""

    def called(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["pitune", *words])
        capsys.readouterr()  # what others printed before
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0), *capsys.readouterr()

    return called


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rnu"], "No such command 'rnu'"),
        (["run"], "Missing argument 'config'"),
        (["plan", "study.yaml", "--sett", "a=b"], "No such option: --sett"),
        (["plan", "study.yaml", "more"], "unexpected extra argument"),
        (["plan", "nothing.yaml"], "nothing.yaml: no such file"),
        (["verify", "nothing.yaml"], "nothing.yaml: no such file"),
        (["export", "nothing.yaml", "movie@16#0"], "Missing option '--to'"),
        (["export", "nothing.yaml", "movie@16#0", "--to", "x"], "nothing.yaml: no such file"),
        (["push", "nothing", "owner/name"], "nothing: is not an expert's folder"),
        (["data"], "Missing command"),
        (["data", "prepare", "nothing.yaml"], "Missing option '--to'"),
        (["data", "prepare", "nothing.yaml", "--to", "x"], "nothing.yaml: no such file"),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], says: str, run: Run) -> None:
    code, out, err = run(*words)
    assert code == 2 and not out
    assert err.startswith("pitune: ") and says in err and err.count("\n") == 1


def test_help_without_arguments(run: Run) -> None:
    code, out, _ = run()
    assert code == 0 and all(command in out for command in ("plan", "run", "status", "report", "verify"))


def test_plan_and_status_of_a_new_study(tmp_path: Path, run: Run) -> None:
    config = str(make_study(tmp_path))
    code, out, _ = run("plan", config)
    assert code == 0 and "experts" in out and "of one core" in out
    assert "largest pack: " in out and "GiB a worker" in out
    code, out, _ = run("status", config)
    assert code == 0 and "0 of 5" in out and "no process works on it" in out
    for command in (["verify"], ["report"], ["export", "alpha@2#0", "--to", str(tmp_path / "out")]):
        code, _, err = run(command[0], config, *command[1:])
        assert code == 2 and "study: has nothing in it yet; run the study first" in err
    assert not (tmp_path / "study").exists()


def test_the_status_of_a_folder_is_what_its_last_run_says(tmp_path: Path, run: Run) -> None:
    config, study = make_study(tmp_path), tmp_path / "study"
    code, _, err = run("status", str(config), "--watch")
    assert code == 2 and err.startswith(f"pitune: {study}/.progress.json: is not there; no run has")
    with recorded(Store(study), StageProgress(Console(), Bars())) as progress:
        progress.show([Stage("experts", 5, 0, 2)])
    config.unlink()  # neither its plan nor its data are looked at
    code, out, _ = run("status", str(study))
    assert code == 0 and "experts             2 of 5\nno process works on it; the last run" in out
    code, out, _ = run("status", str(study), "--watch")
    assert code == 0 and "experts: 2 of 5 there" in out and "finished" in out


def test_prepared_tasks_are_the_tasks_of_the_study(tmp_path: Path, run: Run) -> None:
    config, out = make_study(tmp_path), tmp_path / "out"
    code, said, _ = run(
        "data", "prepare", str(config), "alpha", "--to", str(out), "--per-shard", "20", "--workers", "1"
    )
    assert code == 0 and f"{out}/alpha: " in said and "task.yaml names it to a study" in said
    prepared = yaml.safe_load((out / "alpha" / "task.yaml").read_text())["tasks"]
    wanted = load_task("alpha", load_config(config).tasks["alpha"])
    changed = make_study(tmp_path, tasks=yaml.safe_load(config.read_text())["tasks"] | prepared)
    source = load_config(changed).tasks["alpha"]
    assert source is not None and source.train == str(out / "alpha" / "train")
    assert load_task("alpha", source).fingerprint == wanted.fingerprint
    code, _, err = run("data", "prepare", str(config), "nothing", "--to", str(out))
    assert code == 2 and "task 'nothing': is not in the catalogue" in err
    assert not (tmp_path / "study").exists()


def test_a_matrix_that_is_not_asked_for_is_told_in_one_line(tmp_path: Path, run: Run) -> None:
    config = str(make_study(tmp_path))
    code, out, err = run("transfer", config)
    assert code == 2 and not out and err.count("\n") == 1
    assert (
        err == f"pitune: {config}: transfer: is missing; give its sources and targets, or {{}} for all of the study's\n"
    )
    code, _, err = run("transfer", config, "--set", "transfer.sources=[alpha@2#0]")
    assert code == 2 and "transfer.sources: found alpha@2#0; sources has alpha@full#0" in err
    assert not (tmp_path / "study").exists()


def test_a_method_that_there_is_not_is_one_line(tmp_path: Path, run: Run) -> None:
    config = str(make_study(tmp_path, methods=["single", "sinlge\n"]))
    for command in ("plan", "status"):
        code, out, err = run(command, config)
        assert (code, out) == (2, "")
        assert err == f"pitune: methods: found sinlge; there are {', '.join(METHODS)}\n"
    code, out, _ = run("plan", config, "--set", "methods=[pi]")
    assert code == 0 and "interpolations" in out and "transfer" not in out
    assert not (tmp_path / "study").exists()


def test_looking_at_a_study_loads_neither_ray_nor_deepspeed() -> None:
    """They take seconds, which ``plan``, ``status`` and a mistake in a configuration should not."""
    check = "import sys, pitune.plan, pitune.results; print({'ray', 'deepspeed', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_bridge_names_what_is_wrong_with_its_configuration(tmp_path: Path, run: Run) -> None:
    config = tmp_path / "bridge.yaml"
    config.write_text("to: made\nuri: text\nvision: vit\ntasks: [no_such_task]\n")
    code, _, said = run("bridge", str(config))
    assert code == 2 and f"pitune: {config}: tasks: found 'no_such_task'; the catalogue has movie" in said
    config.write_text("to: made\nuri: text\ntasks: [stamps]\n")
    assert "vision: is missing" in run("bridge", str(config))[2]


def test_a_dual_encoder_names_what_is_wrong_with_its_configuration(tmp_path: Path, run: Run) -> None:
    config = tmp_path / "align.yaml"
    config.write_text("to: made\ntext: text\nvision: vit\ntasks: [stamps]\ntraining: {epochs: 0}\n")
    code, _, said = run("align", str(config))
    assert code == 2 and f"pitune: {config}: training.epochs: found 0; input should be greater than" in said
    config.write_text("to: made\nvision: vit\ntasks: [stamps]\n")
    assert "text: is missing" in run("align", str(config))[2]
