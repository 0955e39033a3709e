"""What the fault tests share: the cluster, the study undisturbed, and the table of what each blow cost."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import battered
import pytest
from battered import Blow, Made, Nodes, make
from tinystudy import make_study

ROWS: list[str] = []
HERE = Path(__file__).parents
ENVIRONMENT = {
    "PYTHONPATH": f"{HERE[2]}:{HERE[1]}",  # the nodes' workers import this checkout, and toys
    "RAY_AUTH_TOKEN": "of-the-fault-tests-only-0123456789abcdef",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # no node here says beforehand that it will go
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "hush",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Of the nodes, and of what they start."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table that docs/faults.md has."""
    if ROWS:
        terminalreporter.write_line("| what | when | under way | packs begun again | seconds | undisturbed | tables |")
        terminalreporter.write_line("|---|---|---|---|---|---|---|")
        for row in ROWS:
            terminalreporter.write_line(row)


@pytest.fixture(scope="session")
def cluster(state_folder: None) -> Iterator[Nodes]:
    folder = tempfile.mkdtemp(prefix="faults-", dir="/tmp")  # sockets need it short
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        with battered.nodes(folder) as made:
            yield made
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def nodes(cluster: Nodes) -> Nodes:
    """Of the cluster, two beside the head."""
    cluster.fill()
    return cluster


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of all stages whose packs take a second or two; one expert a pack, for what is equal to the last bit."""
    recipe = {"batch_size": 8, "learning_rate": 0.01, "steps": 60}
    return make_study(
        tmp_path_factory.mktemp("study"),
        methods=["zero_shot", "single", "pi"],
        transfer={},
        training={"full": recipe, "few": recipe, "validation_examples": 20, "pack_size": 1},
        sweep={"top_k": [1], "temperature": [0.5], "validate_every": 20, "trials": 1},
    )


@pytest.fixture(scope="session")
def reference(cluster: Nodes, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The study undisturbed, on the same nodes."""
    made = make(config, str(tmp_path_factory.mktemp("reference") / "study"))
    assert made.again == 0
    return made


@pytest.fixture
def told(reference: Made) -> Callable[[str, Blow, Made], None]:
    """Assert that a study came to the same, and write down what the blow cost."""

    def tell(what: str, blow: Blow, made: Made) -> None:
        assert blow.under_way, f"the blow never fell: nothing of {blow.stage} was under way"
        battered.assert_equal(made.store, reference.store)
        cells = (what, blow.stage, len(blow.under_way), made.again, f"{made.seconds:.0f}", f"{reference.seconds:.0f}")
        ROWS.append(f"| {' | '.join(map(str, cells))} | equal |")

    return tell
