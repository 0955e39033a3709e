"""The command line: ``pitune plan | run | status | report | verify``. Thin: one function a command."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pitune.errors import PituneError

HELP = "Transfer-learning studies: an expert per task, the task graph, interpolated experts for few-shot targets."
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=HELP)
out, err = Console(), Console(stderr=True)

Config = Annotated[Path, typer.Argument(help="the study's YAML, such as configs/quickstart.yaml")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="take this setting instead of the file's")
]
ROWS_PER_SECOND = 60  # of one core, forward and back, of a 22M-parameter encoder with short texts


@app.command()
def plan(config: Config, set_: Set = None) -> None:
    """Show what a run would make, what is there already, why, and the rough cost."""
    from pitune.study import Study

    study = _open(config, set_)
    assert isinstance(study, Study)
    table = Table("stage", "artifacts", "there", "to make", "why", "rough cost", box=None)
    items = study.plan.items()
    total = 0
    for stage in dict.fromkeys(item.stage for item in items):
        mine = [item for item in items if item.stage == stage]
        wanted = [item for item in mine if item.state != "done"]
        rows = sum(item.rows for item in wanted)
        total += rows
        reasons = Counter(item.why for item in wanted)
        why = "; ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
        table.add_row(stage, str(len(mine)), str(len(mine) - len(wanted)), str(len(wanted)), why, _cost(rows))
    out.print(table)
    out.print(f"study {study.store.root}: {_cost(total)} of one core in all; more cores and GPUs divide it")


@app.command()
def run(
    config: Config,
    set_: Set = None,
    address: Annotated[
        str | None, typer.Option(help="join this Ray cluster (auto, or ray://…); without it, start one")
    ] = None,
) -> None:
    """Make everything that is missing. Stop it at any time and run it again: it goes on where it was."""
    from pitune.progress import shown

    study = _open(config, set_)
    with shown(err) as progress:
        study.run(progress, address)
    _print_results(study)


@app.command()
def status(config: Config, set_: Set = None) -> None:
    """Show how far the study is, without touching it."""
    study = _open(config, set_)
    items = study.plan.items()
    for stage in dict.fromkeys(item.stage for item in items):
        mine = [item for item in items if item.stage == stage]
        done = sum(item.state == "done" for item in mine)
        out.print(f"{stage:<16}{done:>5} of {len(mine)}")
    out.print("running now" if study.store.is_locked() else "no process works on it")


@app.command()
def report(config: Config, set_: Set = None) -> None:
    """Write the report anew from what is there."""
    from pitune.report import write_report

    study = _open(config, set_)
    with study.store.lock():
        write_report(study.store)
    _print_results(study)


@app.command()
def verify(config: Config, set_: Set = None) -> None:
    """Check every artifact against its manifest, and every score against its predictions."""
    study = _open(config, set_)
    problems = list(study.store.problems()) or study.wrong_scores()
    for problem in problems:
        err.print(problem, style="red", soft_wrap=True, highlight=False, markup=False)
    if problems:
        raise PituneError(
            f"{study.store.root}: {len(problems)} problems; delete what they name and run the study again"
        )
    artifacts = study.store.artifacts()
    files = sum(len(manifest["files"]) for manifest in artifacts.values())
    out.print(f"{study.store.root}: {len(artifacts)} artifacts, {files} files, all as their manifests say")


def _open(config: Path, overrides: list[str] | None):  # type: ignore[no-untyped-def]
    # Imported here: torch and Ray take seconds, and --help should not.
    from pitune.config import load_config
    from pitune.study import Study

    return Study(load_config(config, overrides or []))


def _print_results(study) -> None:  # type: ignore[no-untyped-def]
    from pitune.report import markdown

    out.print(markdown(study.store), markup=False, highlight=False, soft_wrap=True)
    if study.store.manifest("report.html"):
        out.print(f"report: {study.store.root}/report.html", soft_wrap=True, highlight=False)


def _cost(rows: int) -> str:
    seconds = rows / ROWS_PER_SECOND
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def main() -> None:
    """Run the command line; what a user can mend is one line and exit code 2."""
    try:
        app(standalone_mode=True)
    except PituneError as error:
        err.print(f"pitune: {error}", style="red", soft_wrap=True, highlight=False, markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("pitune: stopped; run the same command to go on")
        sys.exit(130)


if __name__ == "__main__":
    main()
