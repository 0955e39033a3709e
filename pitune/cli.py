"""The command line: ``pitune plan | run | transfer | bridge | align | …``. Thin: one function a command."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from pitune.errors import PituneError
from pitune.signals import stoppable

if TYPE_CHECKING:
    from pitune.config import StudyConfig
    from pitune.plan import Item, Plan
    from pitune.store import Catalogue, Manifest, Store

HELP = "Transfer-learning studies: an expert per task, the task graph, interpolated experts for few-shot targets."
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=HELP)
data = typer.Typer(help="The data of tasks.")
app.add_typer(data, name="data")
out, err = Console(), Console(stderr=True)

Config = Annotated[Path, typer.Argument(help="the study's YAML, such as configs/quickstart.yaml")]
BridgeFile = Annotated[Path, typer.Argument(help="the bridge's YAML, such as configs/bridge.yaml")]
AlignFile = Annotated[Path, typer.Argument(help="the dual encoder's YAML, such as configs/align.yaml")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="take this setting instead of the file's")
]
STOPPED = 130  # what typer makes of Ctrl-C
Address = Annotated[str | None, typer.Option(help="join this Ray cluster (auto, or HOST:PORT); without it, start one")]
ROWS_PER_SECOND = 60  # of one core, forward and back, of a 22M-parameter encoder with short texts


@app.command()
def plan(config: Config, set_: Set = None) -> None:
    """Show what a run would make, what is there already, why, and the rough cost."""
    plan = _plan(config, set_)
    table = Table("stage", "artifacts", "there", "to make", "why", "rough cost", box=None)
    total = 0.0
    for stage, items in _by_stage(plan).items():
        wanted = [item for item in items if item.state != "done"]
        rows = sum(item.rows for item in wanted)
        total += rows
        reasons = Counter(item.why for item in wanted)
        why = "; ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
        table.add_row(stage, str(len(items)), str(len(items) - len(wanted)), str(len(wanted)), why, _cost(rows))
    out.print(table)
    out.print(f"study {plan.store.root}: {_cost(total)} of one core in all, divided by more cores", soft_wrap=True)

    from pitune.plan.packing import told
    from pitune.runtime.devices import worker_memory

    for line in told(plan, worker_memory(plan.config.runtime)):
        out.print(line, soft_wrap=True, highlight=False)


@app.command()
def run(config: Config, set_: Set = None, address: Address = None) -> None:
    """Make everything that is missing. Stop it at any time and run it again: it goes on where it was."""
    _print_results(_run(_read(config, set_), address))


@app.command()
def transfer(config: Config, set_: Set = None, address: Address = None) -> None:
    """Make the transfer matrix and what it needs, and show it. Stop it at any time, as run."""
    settings = _read(config, set_)
    if settings.transfer is None:
        raise PituneError(
            f"{config}: transfer: is missing; give its sources and targets, or {{}} for all of the study's"
        )

    from pitune.results import TRANSFER

    store = _run(settings, address, TRANSFER)

    from pitune.report import matrix_markdown

    out.print(matrix_markdown(store), markup=False, highlight=False, soft_wrap=True)


@app.command()
def bridge(config: BridgeFile, set_: Set = None) -> None:
    """Train the projector of a bridge, once for all studies. Stop it at any time and run it again, as run."""
    from pitune.config import load_bridge

    settings = load_bridge(config, set_ or [])

    from pitune.progress import shown
    from pitune.store import Store
    from pitune.tasks.catalogue import load_task
    from pitune.training.bridge import make_projector

    tasks = [load_task(name, source) for name, source in settings.tasks.items()]
    with shown(err) as progress:
        made = make_projector(Store(settings.to), settings.backbone, tasks, settings.training, progress.show)
    _print_retrieval(made)
    out.print(f"projector: {settings.backbone.projector}", soft_wrap=True, highlight=False)


@app.command()
def align(config: AlignFile, set_: Set = None) -> None:
    """Make a dual encoder of a vision model and a text model. Stop it at any time and run it again, as run."""
    from pitune.config import load_align

    settings = load_align(config, set_ or [])

    from pitune.progress import shown
    from pitune.store import Store
    from pitune.tasks.catalogue import load_task
    from pitune.training.align import DUAL, MODEL, make_dual

    tasks = [load_task(name, source) for name, source in settings.tasks.items()]
    with shown(err) as progress:
        made = make_dual(Store(settings.to), settings.vision, settings.text, tasks, settings.training, progress.show)
    _print_retrieval(made)
    out.print(f"dual encoder: {settings.to}/{DUAL}/{MODEL}", soft_wrap=True, highlight=False)


@app.command()
def status(
    study: Annotated[str, typer.Argument(help="the study's YAML; or its folder or URI, then as its last run says")],
    watch: Annotated[bool, typer.Option("--watch", help="show it as long as a run works on the study")] = False,
    set_: Set = None,
) -> None:
    """Show how far the study is, without touching it."""
    from pitune import watching
    from pitune.store import Store

    is_place = "://" in study or Path(study).is_dir()
    store = Store(study if is_place else _read(Path(study), set_).study)
    if watch:
        watching.watch(store, out)
    elif is_place:
        watching.print_once(store, out)
    else:
        for stage, items in _by_stage(_plan(Path(study), set_)).items():
            done = sum(item.state == "done" for item in items)
            out.print(f"{stage:<16}{done:>5} of {len(items)}")
    out.print(watching.holder(store), soft_wrap=True, highlight=False, markup=False)


@app.command()
def report(config: Config, set_: Set = None) -> None:
    """Write the report anew from what is there."""
    store, _ = _made(config, set_)

    from pitune.report import write_report

    with store.lock():
        write_report(store)
    _print_results(store)


@app.command()
def verify(config: Config, set_: Set = None) -> None:
    """Check every artifact against its manifest, and every score against its predictions."""
    store, found = _made(config, set_)

    from pitune.methods.transfer import wrong_pairs
    from pitune.results import wrong_scores

    problems = list(store.problems()) or [*wrong_scores(store), *wrong_pairs(store)]
    for problem in problems:
        err.print(problem, style="red", soft_wrap=True, highlight=False, markup=False)
    if problems:
        raise PituneError(
            f"{store.root}: {len(problems)} problem{'s' if len(problems) > 1 else ''}; delete what is named, run again"
        )
    files = sum(len(manifest["files"]) for manifest in found.values())
    out.print(f"{store.root}: {len(found)} artifacts, {files} files, all as their manifests say", soft_wrap=True)


@app.command()
def export(
    config: Config,
    target: Annotated[str, typer.Argument(help="whose expert, such as movie@16#0")],
    to: Annotated[Path, typer.Option(help="the folder that gets the expert and its model card")],
    method: Annotated[str | None, typer.Option(help="the row of the result table; by default pi")] = None,
    license_: Annotated[
        str, typer.Option("--license", help="what the card says; an identifier of the Hub's")
    ] = "other",
    set_: Set = None,
) -> None:
    """Write a target's merged expert into a folder of its own, with a model card, to be given away."""
    settings = _read(config, set_)
    store, _ = _made(config, set_)

    from pitune import sharing
    from pitune.methods.pi import Pi

    sharing.export(store, settings.targets, target, method or Pi.name, to, license_)
    out.print(f"{to}: read README.md, then pitune push {to} OWNER/NAME", soft_wrap=True, highlight=False, markup=False)


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="what pitune export wrote")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="of the Hub; made if it is not there")],
    private: Annotated[bool, typer.Option("--private", help="for you and your organisation alone")] = False,
) -> None:
    """Upload an exported expert to the Hugging Face Hub, or to the one that HF_ENDPOINT names."""
    from pitune import sharing

    out.print(sharing.push(folder, repository, private), soft_wrap=True, highlight=False)


@data.command()
def prepare(
    config: Config,
    to: Annotated[Path, typer.Option(help="the folder that gets a folder for each task")],
    tasks: Annotated[
        list[str] | None, typer.Argument(help="of the study or the catalogue; by default the study's")
    ] = None,
    per_shard: Annotated[int, typer.Option(min=1, help="the most examples of a shard")] = 1000,
    workers: Annotated[int | None, typer.Option(min=1, help="processes; by default as many as there are cores")] = None,
    set_: Set = None,
) -> None:
    """Write tasks as webdataset shards with an index, or what is missing of them; check those that are there."""
    sources = _read(config, set_).tasks

    from pitune.config.reading import to_yaml
    from pitune.progress import shown
    from pitune.store import Store
    from pitune.tasks import preparing
    from pitune.tasks.catalogue import KNOWN, load_task

    with preparing.workers(workers or os.cpu_count() or 1) as pool, shown(err) as progress:
        for name in tasks or sources:
            task, folder = load_task(name, sources.get(name)), to / name
            index = preparing.prepare(task, folder, per_shard, pool, progress)
            source = preparing.source_of(task, folder).model_dump(exclude_none=True)
            lines = to_yaml({"tasks": {f"{name}_shards" if name in KNOWN else name: source}})
            Store(folder).write("task.yaml", lines.encode())
            shards = [shard for split in index["splits"].values() for shard in split["shards"]]
            examples, size = (sum(shard[count] for shard in shards) for count in ("examples", "bytes"))
            held = f"{examples:,} examples in {len(shards)} shards, {size / 1e6:,.1f} MB"
            out.print(f"{folder}: {held}; task.yaml names it to a study", soft_wrap=True, highlight=False, markup=False)


# Each import below and above is where it is needed: torch, Ray and DeepSpeed take seconds, and few commands need all.


def _read(config: Path, overrides: list[str] | None) -> StudyConfig:
    from pitune.config import load_config

    return load_config(config, overrides or [])


def _run(settings: StudyConfig, address: str | None, goal: str | None = None) -> Store:
    """Make what is missing, or the goal alone, and tell how far it is; return the study's store."""
    from pitune.progress import shown
    from pitune.study import Study

    study = Study(settings, goal=goal)
    with shown(err) as progress:
        study.run(progress, address)
    return study.store


def _made(config: Path, overrides: list[str] | None) -> tuple[Store, Catalogue]:
    """Open the store of a study that has been run, if only in part, and look at what it has."""
    from pitune.store import Store

    store = Store(_read(config, overrides).study)
    found = store.catalogue()
    if not found:
        raise PituneError(f"study folder {store.root}: has nothing in it yet; run the study first")
    return store, found


def _plan(config: Path, overrides: list[str] | None) -> Plan:
    settings = _read(config, overrides)

    from pitune.plan import Plan

    return Plan.of(settings)


def _by_stage(plan: Plan) -> dict[str, list[Item]]:
    stages: dict[str, list[Item]] = {}
    for item in plan.items():
        stages.setdefault(item.stage, []).append(item)
    return stages


def _print_results(store: Store) -> None:
    from pitune.report import markdown

    out.print(markdown(store), markup=False, highlight=False, soft_wrap=True)
    if store.manifest("report.html"):
        out.print(f"report: {store.where('report.html')}", soft_wrap=True, highlight=False)


def _print_retrieval(made: Manifest) -> None:
    """Print how often the right caption was found, by task and split."""
    table = Table("task", "captions", "split", "recall@1", "@5", "@10", box=None)
    for task, found in made["retrieval"].items():
        for split in ("validation", "test"):
            table.add_row(
                task, str(found["captions"]), split, *(f"{100 * share:.1f}" for share in found[split].values())
            )
    out.print(table)


def _cost(rows: float) -> str:
    seconds = rows / ROWS_PER_SECOND
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def main() -> None:
    """Run the command line; what a user can mend is one line and exit code 2."""
    with stoppable() as stopped:
        try:
            code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        except typer.TyperException as error:  # wrong usage
            _refuse(f"{' '.join(error.format_message().split())} (see pitune --help)")
        except PituneError as error:
            _refuse(str(error))
    if code == STOPPED:
        err.print("pitune: stopped; run the same command to go on")
        code = stopped.code or code
    sys.exit(code)


def _refuse(why: str) -> NoReturn:
    err.print(f"pitune: {why}", style="red", soft_wrap=True, highlight=False, markup=False)
    sys.exit(2)


if __name__ == "__main__":
    main()
