"""Checkpoints are opened where this study's own workers signed them, and nothing in them is where they did not.

Folders play Ray's part. :func:`opened`, which unpickles every ``.pt`` that it is given, plays DeepSpeed's.
"""

from __future__ import annotations

import logging
import pickle
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from pyarrow import fs

from pitune.runtime.signing import NAME, Key, Label, Unsigned, copy_signed, key_of, sign
from pitune.runtime.worker import GangSeat

KEY = Key(bytes(range(32)))
SHARD = "shards/zero_pp_rank_{}_mp_rank_00_optim_states.pt"


class Evil:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.mark,)


class Others:
    """The other workers of a gang: each finds ``found``, or what this one finds."""

    def __init__(self, *found: int | None) -> None:
        self.found = found

    def all(self, value: int | None) -> list[int | None]:
        return [value, *self.found]


class Gang:
    """A gang of two workers, whose last checkpoint lies in ``folder``."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.patch = patch
        patch.setattr(ray.train, "report", self._report)
        patch.setattr(ray.train, "get_checkpoint", lambda: ray.train.Checkpoint(str(self.folder), self.filesystem))
        self.filesystem: fs.FileSystem = fs.LocalFileSystem()

    def seat(self, rank: int, pack: str = "pack-a", key: Key = KEY, others: Others | None = None) -> GangSeat:
        context = SimpleNamespace(get_world_rank=lambda: rank, get_world_size=lambda: 2)
        self.patch.setattr(ray.train, "get_context", lambda: context)
        seat = GangSeat(None, "gang0", key, others or Others())  # type: ignore[arg-type]
        seat.take(pack)
        return seat

    def save(self, step: int, pack: str = "pack-a", key: Key = KEY, ranks: tuple[int, ...] = (0, 1)) -> None:
        """Save a checkpoint from each of ``ranks``."""
        for rank in ranks:

            def write(folder: Path, rank: int = rank) -> None:
                (folder / "shards").mkdir()
                (folder / SHARD.format(rank)).write_bytes(pickle.dumps([pack, step, rank]))
                (folder / "step.json").write_text(str(step))  # every rank writes it

            self.seat(rank, pack, key).checkpoint(write, step)

    def _report(self, metrics: dict[str, Any], checkpoint: Any) -> None:
        shutil.copytree(checkpoint.path, self.folder, dirs_exist_ok=True)


@pytest.fixture
def gang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gang:
    return Gang(tmp_path / "storage" / "checkpoint", monkeypatch)


def opened(folder: Path) -> list[Any]:
    return [pickle.loads(path.read_bytes()) for path in sorted(folder.rglob("*.pt"))]


def resumed(seat: GangSeat) -> list[Any] | None:
    """Return what is in the checkpoint that a worker goes on from; None where it begins anew."""
    with seat.resume() as folder:
        return None if folder is None else opened(folder)


def test_a_signed_checkpoint_comes_back_whole_in_a_private_copy(gang: Gang) -> None:
    gang.save(500)
    for rank in (0, 1):
        with gang.seat(rank).resume() as folder:
            assert folder is not None and gang.folder not in (folder, *folder.parents)
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert opened(folder) == [["pack-a", 500, 0], ["pack-a", 500, 1]]
            assert (folder / "step.json").read_text() == "500"
        assert not folder.exists()


def test_it_comes_back_out_of_a_bucket(gang: Gang) -> None:
    gang.save(500)
    bucket = fs._MockFileSystem()  # type: ignore[attr-defined]
    bucket.create_dir("bucket/checkpoint")
    fs.copy_files(str(gang.folder), "bucket/checkpoint", fs.LocalFileSystem(), bucket)
    gang.folder, gang.filesystem = Path("bucket/checkpoint"), bucket
    assert resumed(gang.seat(1)) == [["pack-a", 500, 0], ["pack-a", 500, 1]]


def test_an_older_checkpoint_of_the_same_pack_is_good_too(gang: Gang) -> None:
    gang.save(500)
    shutil.copytree(gang.folder, gang.folder.with_name("old"))
    gang.save(1000)
    gang.folder = gang.folder.with_name("old")
    assert resumed(gang.seat(0)) == [["pack-a", 500, 0], ["pack-a", 500, 1]]


def another_file(gang: Gang) -> str:
    """Another pack's, as large as this one's, in its place."""
    (gang.folder / SHARD.format(1)).write_bytes(pickle.dumps(["pack-b", 500, 1]))
    return f"{SHARD.format(1)}: is not the file that was signed"


def a_flipped_byte(gang: Gang) -> str:
    path = gang.folder / SHARD.format(1)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    return f"{SHARD.format(1)}: is not the file that was signed"


def a_longer_file(gang: Gang) -> str:
    path = gang.folder / SHARD.format(0)
    path.write_bytes(path.read_bytes() + b"more")
    return f"{SHARD.format(0)}: is not as large as the file that was signed"


def a_missing_file(gang: Gang) -> str:
    (gang.folder / SHARD.format(0)).unlink()
    return f"{SHARD.format(0)}: cannot be read (No such file or directory)"


def a_missing_signature(gang: Gang) -> str:
    (gang.folder / NAME.format(1)).unlink()
    return f"{NAME.format(1)}: cannot be read (No such file or directory)"


def another_step(gang: Gang) -> str:
    """In the label, behind the signature's back."""
    path = gang.folder / NAME.format(0)
    path.write_bytes(path.read_bytes().replace(b'"step": 500', b'"step": 100'))
    return f"{NAME.format(0)}: is not signed with the key"


def two_steps(gang: Gang) -> str:
    """Each rank's part is good, but they are not of one checkpoint."""
    gang.save(1000, ranks=(1,))
    return f"{NAME.format(1)}: is signed as Label(pack='pack-a', world_size=2, rank=1, step=1000), rank 0's as Label("


def one_rank_twice(gang: Gang) -> str:
    shutil.copy(gang.folder / NAME.format(0), gang.folder / NAME.format(1))
    return f"{NAME.format(1)}: is signed as Label(pack='pack-a', world_size=2, rank=0, step=500)"


def another_key(gang: Gang) -> str:
    gang.save(500, key=Key(bytes(32)))
    return f"{NAME.format(0)}: is not signed with the key"


def no_signature_at_all(gang: Gang) -> str:
    (gang.folder / NAME.format(0)).write_bytes(b"{}")
    return f"{NAME.format(0)}: is not signed with the key"


@pytest.mark.parametrize(
    "spoil",
    [
        *(a_flipped_byte, a_longer_file, a_missing_file, another_file, a_missing_signature),
        *(another_step, two_steps, one_rank_twice, another_key, no_signature_at_all),
    ],
)
def test_what_is_not_as_it_was_signed_is_no_checkpoint(
    gang: Gang, spoil: Callable[[Gang], str], caplog: pytest.LogCaptureFixture
) -> None:
    gang.save(500)
    wrong = spoil(gang)
    with caplog.at_level(logging.WARNING):
        assert resumed(gang.seat(0)) is None
    (record,) = caplog.records
    assert record.getMessage().startswith(f"pack-a begins anew: {gang.folder}/{wrong}")
    assert "\n" not in record.getMessage()


def test_a_pickle_that_nobody_signed_is_not_opened(gang: Gang, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    evil = pickle.dumps(Evil(mark))
    gang.save(500)
    for name in ("x.pt", "shards/mp_rank_00_model_states.pt"):  # DeepSpeed looks for names like the second
        (gang.folder / name).write_bytes(evil)
    assert resumed(gang.seat(0)) == [["pack-a", 500, 0], ["pack-a", 500, 1]]
    (gang.folder / SHARD.format(0)).write_bytes(evil)
    assert resumed(gang.seat(0)) is None
    assert not mark.exists()
    opened(gang.folder)
    assert mark.exists()


def test_another_packs_checkpoint_is_none_and_nothing_to_tell(gang: Gang, caplog: pytest.LogCaptureFixture) -> None:
    """A gang's last checkpoint is mostly that of the pack before."""
    gang.save(500)
    assert resumed(gang.seat(0, "pack-b")) is None
    source = fs.SubTreeFileSystem(str(gang.folder), fs.LocalFileSystem())
    assert copy_signed(source, gang.folder.with_name("copy"), "pack-a", 3, KEY) is None  # of two workers, not three
    assert not gang.folder.with_name("copy").exists()
    gang.patch.setattr(ray.train, "get_checkpoint", lambda: None)
    assert resumed(gang.seat(0)) is None
    assert not caplog.records


@pytest.mark.parametrize("found", [None, 400])
def test_all_workers_go_on_from_the_same_step_or_begin_anew(gang: Gang, found: int | None) -> None:
    gang.save(500)
    assert resumed(gang.seat(0, others=Others(500))) is not None
    assert resumed(gang.seat(0, others=Others(found))) is None


def test_a_label_of_any_length_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sign(tmp_path, Label("pack-a", 1, 0, 500), KEY)
    monkeypatch.setattr("pitune.runtime.signing.LABEL_BYTES", 50)
    with pytest.raises(Unsigned, match="is not signed"):
        copy_signed(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), tmp_path / "to", "pack-a", 1, KEY)


def test_the_signature_is_hmac_sha256() -> None:
    """RFC 4231, test case 2."""
    expected = b"5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert Key(b"Jefe").sign(b"what do ya want for nothing?") == expected


def test_a_studys_key_stays_and_is_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    key = key_of("s3://bucket/study/.ray/train")
    assert len(key.secret) == 32 and key_of("s3://bucket/study/.ray/train") == key
    assert key_of("s3://bucket/other/.ray/train") != key
    paths = list((tmp_path / "pitune" / "keys").iterdir())
    assert len(paths) == 2
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in paths)
    assert stat.S_IMODE(paths[0].parent.stat().st_mode) == 0o700
    assert not any("study" in path.name for path in paths)


@pytest.mark.parametrize("spoil", [lambda path: path.chmod(0o644), lambda path: path.write_bytes(b"short")])
def test_a_key_that_others_may_have_read_or_that_is_cut_is_replaced(
    spoil: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    key = key_of("study")
    (path,) = (tmp_path / "pitune" / "keys").iterdir()
    spoil(path)
    assert key_of("study") != key
    assert key_of("study").secret == path.read_bytes() and stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_that_cannot_be_kept_lasts_as_long_as_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert len(key_of("study").secret) == 32


def test_a_key_is_not_shown() -> None:
    assert repr(KEY) == str({"key": KEY}["key"]) == f"{KEY}" == "Key()"
