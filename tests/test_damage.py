"""Artifacts cut off, changed in a bit or swapped: each is found, none is used, the next run makes it again."""

from __future__ import annotations

import contextlib
import random
import shutil
from io import StringIO
from pathlib import Path

import pytest
from fakelanes import Opener
from tinystudy import make_study

from pitune import study as study_module
from pitune.cli import main
from pitune.config import StudyConfig, load_config
from pitune.errors import PituneError
from pitune.store import Store
from pitune.store.manifest import CHECKSUM, MANIFEST, file_path, manifest_path
from pitune.study import Study

ROUNDS, DAMAGES = 10, 30
WAYS = ("cut", "flip", "swap")


class Quiet:
    """Is told how far a study is, and says nothing."""

    def show(self, stages: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    """A study that is made, if only made up."""
    config = load_config(make_study(tmp_path_factory.mktemp("whole"), targets=["alpha@2#0", "beta@2#1", "gamma@2#0"]))
    with pytest.MonkeyPatch.context() as patch:
        run(config, patch)
    return config


def run(config: StudyConfig, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("pitune.report.write_report", lambda store: None)
    patch.setattr(study_module, "connect", lambda address: contextlib.nullcontext())
    patch.setattr(study_module, "LOOK_SECONDS", 0.0)
    Study(config, Opener()).run(Quiet())


def parts_of(folder: Path) -> dict[str, tuple[str, str]]:
    """Return the artifact, and the name there, of each file that an artifact consists of, by path."""
    found = Store(folder).artifacts().items()
    return {file_path(artifact, name): (artifact, name) for artifact, held in found for name in held["files"]}


def contents(folder: Path) -> dict[str, bytes]:
    """Return what those files hold."""
    return {path: Store(folder).read(*part) for path, part in parts_of(folder).items()}


def damage(file: Path, other: Path, dice: random.Random) -> None:
    """Cut a file off, change a bit of it, or put the other's content there."""
    content, way = file.read_bytes(), dice.choice(WAYS)
    if way == "cut":
        file.write_bytes(content[: dice.randrange(len(content))])
    elif way == "swap":
        file.write_bytes(other.read_bytes())
    else:
        name = content.rfind(f'"{CHECKSUM}"'.encode()) if file.name.endswith(MANIFEST) else len(content)
        place = dice.choice([place for place in range(len(content)) if not name <= place < name + len(CHECKSUM) + 2])
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << dice.randrange(8)]) + content[place + 1 :])


def verified(config: StudyConfig, folder: Path) -> tuple[object, list[str]]:
    """Run ``pitune verify`` on a study; return its exit code and what it has told."""
    told = StringIO()
    path = folder.parent / "study.yaml"
    path.write_text(config.model_copy(update={"study": str(folder)}).yaml())
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(told), pytest.raises(SystemExit) as caught:
        patch.setattr("sys.argv", ["pitune", "verify", str(path)])
        main()
    return caught.value.code, told.getvalue().splitlines()


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_damage_is_found_not_used_and_mended(
    seed: int, whole: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a name that says nothing of older studies, the checksum's, a bit may change: the manifest then has none."""
    folder, dice = shutil.copytree(whole.study, tmp_path / "study"), random.Random(seed)
    before, parts = contents(folder), parts_of(folder)
    manifests = {path: manifest_path(artifact) for path, (artifact, _) in parts.items()}
    every = sorted({*parts, *manifests.values()})
    chosen = dice.sample(every, DAMAGES)
    for path in chosen:
        content = (folder / path).read_bytes()
        others = [other for other in every if (folder / other).read_bytes() != content]
        damage(folder / path, folder / dice.choice(others), dice)
    code, told = verified(whole, folder)
    named = {line.partition(": ")[0] for line in told[:-1]}
    assert code == 2 and not {path for path in chosen if not named & {path, manifests.get(path)}}
    for path, part in parts.items():
        with contextlib.suppress(PituneError):
            assert Store(folder).read(*part) == before[path]
    for path in named:
        (folder / path).unlink(missing_ok=True)
    run(whole.model_copy(update={"study": str(folder)}), monkeypatch)
    assert contents(folder) == before and not list(Store(folder).problems())


def test_swapped_artifacts_of_one_fingerprint_are_found(whole: StudyConfig, tmp_path: Path) -> None:
    """The two embeddings of a slice are made together: nothing but their manifests' own words tells them apart."""
    folder = shutil.copytree(whole.study, tmp_path / "study")
    one, other = (f"embeddings/alpha@2#0{end}" for end in (".parquet", "/true.parquet"))
    for first, second in ((one, other), (manifest_path(one), manifest_path(other))):
        first_bytes = (folder / first).read_bytes()
        (folder / first).write_bytes((folder / second).read_bytes())
        (folder / second).write_bytes(first_bytes)
    told = [problem.partition(":")[0] for problem in Store(folder).problems()]
    assert told == [manifest_path(one), manifest_path(other)]
    assert not {one, other} & set(Store(folder).catalogue())
