"""Which experts train together, and what a gang's work commits."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from tinymodel import WORDS, flat, make_task
from tinystudy import make_materials

from pitune.backbones import Inputs
from pitune.backbones.cache import CACHE
from pitune.errors import OutOfMemory
from pitune.experts.checkpoint import to_files
from pitune.materials import Materials
from pitune.tasks.task import Slice
from pitune.training import loop
from pitune.training.engine import EngineSettings
from pitune.training.loop import Alone, Member, PackedModel, PackTraining
from pitune.training.pack import ExpertJob, Pack, make_packs
from pitune.training.recipe import Recipe
from pitune.training.settings import TrainingSettings
from pitune.training.work import ExpertTraining

FEW = Recipe(steps=3, batch_size=4, learning_rate=0.02)
SETTINGS = TrainingSettings()


def job(text: str, start: str | None = None, recipe: Recipe = FEW, length: int = 1) -> ExpertJob:
    data = ((Slice.parse(text), 1.0),)
    return ExpertJob((f"experts/{text}",), {"slice": text, "start": start}, text, data, recipe, start, length)


def jobs_of(slices: dict[str, int], settings: TrainingSettings) -> list[ExpertJob]:
    """Return the jobs of slices with their rows' lengths, each trained as the settings say."""
    return [job(text, None, settings.recipe(Slice.parse(text)), length) for text, length in slices.items()]


def packed(slices: dict[str, int], **settings: object) -> list[set[str]]:
    chosen = TrainingSettings.model_validate(settings)
    packs = make_packs(jobs_of(slices, chosen), chosen)
    assert len({pack.name for pack in packs}) == len(packs)
    return [{one.name for one in pack.jobs} for pack in packs]


def test_a_pack_has_one_recipe() -> None:
    settings = {"full": {"steps": 100}, "shots": {4: {"steps": 7}}}
    slices = {"a@full#0": 10, "a@16#0": 10, "a@4#0": 10, "b@full#0": 10, "b@16#0": 10, "b@4#0": 10, "b@8#0": 10}
    found = packed(slices, **settings)
    assert {frozenset(one) for one in found} == {
        frozenset({"a@full#0", "b@full#0"}),
        frozenset({"a@16#0", "b@16#0", "b@8#0"}),
        frozenset({"a@4#0", "b@4#0"}),
    }


def test_a_pack_has_texts_of_like_length_and_a_bounded_size() -> None:
    found = packed({"a@4#0": 10, "b@4#0": 15, "c@4#0": 16, "d@4#0": 24, "e@4#0": 60})
    assert sorted(map(sorted, found)) == [["a@4#0", "b@4#0"], ["c@4#0", "d@4#0"], ["e@4#0"]]
    sizes = [len(one) for one in packed({f"a@4#{seed}": 10 for seed in range(10)}, pack_size=4)]
    assert sorted(sizes) == [2, 4, 4]


def pair(target: str, source: str, length: int = 1, recipe: Recipe = FEW) -> ExpertJob:
    """Return the job of a pair, as the plan builds it."""
    data = ((Slice.parse(target), 1.0),)
    artifact, start = f"transfer/{target}/{source}", f"experts/{source}"
    return ExpertJob((artifact,), {"slice": target, "start": start}, target, data, recipe, start, length)


def pairs_of(sources: int, targets: dict[str, int]) -> list[ExpertJob]:
    return [pair(text, f"s{n}@full#0", length) for n in range(sources) for text, length in targets.items()]


@pytest.mark.parametrize(
    ("sources", "pack_size", "sizes"),
    [
        (6, 6, [6]),
        (4, 6, [4]),
        (3, 6, [3]),
        (7, 6, [4, 3]),
        (20, 6, [5, 5, 5, 5]),
        (10, 3, [3, 3, 2, 2]),
        (2, 1, [1, 1]),
    ],
)
def test_pairs_of_one_target_share_packs(sources: int, pack_size: int, sizes: list[int]) -> None:
    """Whatever else is to be trained: own experts of the same targets, targets of like length, other sources."""
    targets = {"a@4#0": 10, "a@4#1": 10, "b@4#0": 10, "c@4#0": 12}
    jobs = [*pairs_of(sources, targets), *(job(text, length=length) for text, length in targets.items())]
    packs = make_packs(jobs[::-1], TrainingSettings(pack_size=pack_size))
    found: dict[str, list[int]] = {}
    for pack in packs:
        assert len({one.start is None for one in pack.jobs}) == 1 and len(pack.jobs) <= pack_size
        for target in {one.name for one in pack.jobs if one.start}:
            found.setdefault(target, []).append(sum(one.name == target for one in pack.jobs))
    assert {target: sorted(held, reverse=True) for target, held in found.items()} == dict.fromkeys(targets, sizes)
    together = max(1, pack_size // sizes[0]) if len(sizes) == 1 else 1
    assert sum(pack.jobs[0].start is not None for pack in packs) == len(targets) * len(sizes) // together


@pytest.mark.parametrize("sources", range(1, 24))
def test_packs_of_pairs_keep_their_names_when_one_is_done(sources: int) -> None:
    settings = TrainingSettings(pack_size=3)
    packs = make_packs(pairs_of(sources, {"a@4#0": 10}), settings)
    for done in packs:
        left = [one for pack in packs if pack is not done for one in pack.jobs]
        assert {pack.name for pack in make_packs(left, settings)} == {pack.name for pack in packs} - {done.name}


def test_packs_without_a_size_hold_what_fits() -> None:
    """A size that is given is taken as it is."""
    jobs = [job(f"{task}@4#{seed}", length=length) for task, length in (("a", 10), ("b", 12)) for seed in range(4)]

    def fits(pack: Sequence[ExpertJob]) -> bool:
        return len(pack) <= (3 if any(one.length == 12 for one in pack) else 5)

    def sizes(settings: TrainingSettings, given: list[ExpertJob]) -> list[int]:
        return sorted(len(pack.jobs) for pack in make_packs(given, settings, fits))

    assert sizes(SETTINGS, jobs) == [1, 3, 4]
    assert sizes(TrainingSettings(pack_size=8), jobs) == [8]
    assert sizes(SETTINGS, pairs_of(9, {"a@4#0": 12})) == [3, 3, 3]


def test_halves_are_packs_of_their_own() -> None:
    (pack,) = make_packs([job(f"a@4#{seed}") for seed in range(5)], SETTINGS)
    first, second = pack.halves()
    assert first.jobs + second.jobs == pack.jobs and len(first.jobs) == 3
    assert len({pack.name, first.name, second.name, *(half.name for half in first.halves())}) == 5
    assert Pack("p", pack.jobs[:1]).halves() == ()


class Small(PackedModel):
    """Stands for a device that holds two experts' rows at most."""

    error: type[BaseException] = torch.OutOfMemoryError

    def forward(self, batches: Any, wants_answers: bool = False) -> Any:
        if self.bank.size > 2 and not wants_answers:
            raise self.error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return super().forward(batches, wants_answers)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_what_did_not_fit_trains_in_halves_as_if_it_had_from_the_start(
    error: type[BaseException], materials: Materials, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = Pack("p", tuple(job(text) for text in ("a@4#0", "b@4#0", "a@4#1", "b@4#1")))
    other = make_materials(tmp_path / "other", tiny_folder, steps=3)
    for half in pack.halves():
        ExpertTraining(other, SETTINGS).train(half, Alone())
    monkeypatch.setattr(Small, "error", error)
    monkeypatch.setattr(loop, "PackedModel", Small)
    work = ExpertTraining(materials, SETTINGS)
    with pytest.raises(OutOfMemory, match=r"expert a@4#0: a step of 4 x 4 rows does not fit .* lower training"):
        work.train(pack, Alone())
    assert not materials.store.artifacts()
    for half in pack.halves():
        work.train(half, Alone())
    for one in pack.jobs:
        found, expected = (flat(held.expert(one.artifacts[0])) for held in (materials, other))
        assert torch.equal(found, expected)


def test_the_most_work_comes_first_and_the_order_of_the_jobs_does_not_matter() -> None:
    slices = {"a@4#0": 10, "b@full#0": 50, "c@full#0": 10}
    settings = {"full": {"steps": 100}, "few": {"steps": 10}}
    assert packed(slices, **settings) == [{"b@full#0"}, {"c@full#0"}, {"a@4#0"}]
    assert packed(dict(reversed(slices.items())), **settings) == packed(slices, **settings)


def test_trials_come_after_all_that_others_wait_for() -> None:
    long = job("a@4#0", recipe=Recipe(steps=500))
    jobs = [dataclasses.replace(long, may_fail=True), job("b@4#0"), job("c@4#0", recipe=Recipe(steps=7))]
    assert [pack.jobs[0].name for pack in make_packs(jobs, SETTINGS)] == ["c@4#0", "b@4#0", "a@4#0"]


def test_a_packs_name_is_that_of_its_checkpoints() -> None:
    """It stays when other packs are done, and changes with all that shards depend on."""

    def names(slices: dict[str, int], **settings: object) -> list[str]:
        chosen = TrainingSettings.model_validate(settings)
        return [pack.name for pack in make_packs(jobs_of(slices, chosen), chosen)]

    slices = {f"a@4#{seed}": 10 for seed in range(4)}
    first, second = names(slices, pack_size=2)
    assert names(dict(list(slices.items())[2:]), pack_size=2) == [second]
    assert first not in names(slices, pack_size=3)
    assert first not in names(slices, pack_size=2, zero_stage=3)
    assert first not in names(slices, pack_size=2, gradient_accumulation=2)


@pytest.fixture
def materials(tiny_folder: Path, tmp_path: Path) -> Materials:
    return make_materials(tmp_path / "study", tiny_folder, steps=3)


def test_a_pack_is_committed_expert_by_expert(materials: Materials, tiny_folder: Path, tmp_path: Path) -> None:
    ExpertTraining(materials, SETTINGS).train(Pack("p", (job("a@4#0"), job("b@4#1"))), Alone())
    other = make_materials(tmp_path / "alone", tiny_folder, steps=3)
    ExpertTraining(other, SETTINGS).train(Pack("q", (job("b@4#1"),)), Alone())
    manifest = materials.store.manifest("experts/b@4#1")
    assert manifest is not None
    assert {key: manifest[key] for key in ("data", "start", "selection", "step", "pack", "trials", "steps")} == {
        **{"data": [["b@4#1", 1.0]], "start": "common", "selection": "last", "step": 3, "pack": "p"},
        **{"trials": 1, "steps": 3},
    }
    torch.testing.assert_close(
        flat(materials.expert("experts/b@4#1")), flat(other.expert("experts/b@4#1")), atol=2e-5, rtol=1e-3
    )
    curve = materials.store.table("experts/b@4#1", "curve.parquet").to_pylist()
    assert [row["step"] for row in curve] == [1, 2, 3]
    tensors = load(materials.store.read("experts/b@4#1", "adapter_model.safetensors"))
    config = json.loads(materials.store.read("experts/b@4#1", "adapter_config.json"))
    assert config["peft_type"] == "LORA" and len(tensors) == 8


def test_an_expert_may_start_from_another(materials: Materials) -> None:
    still = Recipe(steps=1, batch_size=4, learning_rate=1e-12)
    ExpertTraining(materials, SETTINGS).train(Pack("p", (job("a@4#0"),)), Alone())
    ExpertTraining(materials, SETTINGS).train(Pack("q", (job("b@4#0", "experts/a@4#0", still),)), Alone())
    torch.testing.assert_close(flat(materials.expert("experts/b@4#0")), flat(materials.expert("experts/a@4#0")))


def test_pairs_of_one_target_run_the_trunk_once(materials: Materials, monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as one expert alone: each of its rows and of its validation rows comes by once, whatever E is."""
    below = materials.backbone._below
    ran: list[int] = []

    def counted(inputs: Inputs, first: int) -> torch.Tensor:
        ran.append(len(inputs.tensors["input_ids"]))
        return below(inputs, first)

    monkeypatch.setattr(materials.backbone, "_below", counted)
    work = ExpertTraining(materials, SETTINGS)
    work.train(Pack("sources", (job("a@4#0"), job("b@4#1"), job("b@4#2"))), Alone())
    again = FEW.model_copy(update={"steps": 8})  # every row comes four times
    targets = [("a@4#3", ["a@4#0"]), ("b@4#3", ["a@4#0", "b@4#1", "b@4#2"])]
    for target, sources in targets:
        CACHE.clear()
        ran.clear()
        drawn = materials.data(Slice.parse(target))
        texts = {example.text for example in (*drawn.train, *drawn.validation)}
        packs = make_packs([pair(target, source, recipe=again) for source in sources], SETTINGS)
        assert [len(pack.jobs) for pack in packs] == [len(sources)]
        work.train(packs[0], Alone())
        assert sum(ran) == len(texts), target
    alone = flat(materials.expert("transfer/b@4#3/b@4#1"))
    work.train(Pack("alone", (pair("b@4#3", "b@4#1", recipe=again),)), Alone())
    torch.testing.assert_close(flat(materials.expert("transfer/b@4#3/b@4#1")), alone, atol=2e-5, rtol=1e-3)


def test_an_expert_of_several_slices_is_committed_with_their_weights(materials: Materials) -> None:
    slices = tuple(map(Slice.parse, ("a@4#0", "b@4#0")))
    several = ExpertJob(("experts/both",), {"both": True}, "both", ((slices[0], 1.0), (slices[1], 3.0)), FEW)
    ExpertTraining(materials, SETTINGS).train(Pack("p", (job("a@4#0"), several)), Alone())
    manifest = materials.store.manifest("experts/both")
    assert manifest is not None
    assert manifest["data"] == [["a@4#0", 1.0], ["b@4#0", 3.0]]
    rows = [materials.rows(several.data, role) for role in ("train", "validation")]
    alone = PackTraining(
        *(materials.backbone, materials.kind, materials.objective),
        [Member("both", materials.start, *rows)],
        *(FEW, EngineSettings()),
    ).run()[0]
    torch.testing.assert_close(flat(materials.expert("experts/both")), flat(alone.expert), atol=2e-5, rtol=1e-3)
    assert manifest["validation"] == pytest.approx(alone.validation, abs=1e-5)


def test_an_expert_that_is_not_a_number_is_told_and_the_others_committed(materials: Materials) -> None:
    sick = {site: {key: tensor.clone() for key, tensor in held.items()} for site, held in materials.start.items()}
    next(iter(sick.values()))["lora_B.weight"][:] = math.inf
    bad = job("bad@4#0")
    materials.store.commit(
        "experts/bad@4#0", to_files(materials.kind, sick, "tiny"), bad.fingerprint, inputs=bad.inputs
    )
    pack = Pack("p", (job("a@4#0"), job("b@4#0", "experts/bad@4#0")))
    errors = ExpertTraining(materials, SETTINGS).train(pack, Alone())
    assert errors == {"experts/b@4#0": "expert b@4#0: the loss is nan at step 1; lower training.*.learning_rate"}
    assert materials.store.manifest("experts/a@4#0") is not None
    assert materials.store.manifest("experts/b@4#0") is None
    trial = dataclasses.replace(job("b@4#0", "experts/bad@4#0"), artifacts=("trials/b",), may_fail=True)
    assert ExpertTraining(materials, SETTINGS).train(Pack("q", (job("a@4#0"), trial)), Alone()) == {}
    manifest = materials.store.manifest("trials/b")
    assert manifest is not None and manifest["validation"] == {"loss": None, "accuracy": None}
    assert manifest["error"] == errors["experts/b@4#0"] and manifest["steps"] == 3


def test_words_are_whole_tokens() -> None:
    """The tiny tokenizer knows every word of the tiny tasks."""
    assert {word for split in make_task("a", 5, 60).splits.values() for e in split for word in e.text.split()} <= {
        *WORDS
    }
