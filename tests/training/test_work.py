"""A gang's work with several workers, on a real, local Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tinymodel import flat
from tinystudy import make_study

from pitune.config import load_config
from pitune.plan import Plan
from pitune.runtime.gangs import run_packs
from pitune.runtime.settings import RuntimeSettings
from pitune.training import engine
from pitune.training.loop import Alone, Seat
from pitune.training.pack import ExpertJob, make_packs
from pitune.training.work import ExpertTraining


class Sharded(ExpertTraining):
    """Shares out every parameter, where DeepSpeed would keep small ones whole on each worker."""

    def open(self, seat: Seat) -> None:
        plain = engine._deepspeed_config

        def sharded(settings: engine.EngineSettings, trainable: int) -> dict[str, Any]:
            config = plain(settings, trainable)
            config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
            return config

        engine._deepspeed_config = sharded
        super().open(seat)


@pytest.mark.slow
def test_two_workers_that_share_out_the_backbone_train_like_one(ray_session: None, tmp_path: Path) -> None:
    """They run its trunk for other rows each, and must do so equally often: every worker has a part of it."""
    path = make_study(tmp_path, expert={"kind": "lora", "rank": 2, "alpha": 2, "layers": 2})
    shared, alone = (
        Plan.of(
            load_config(path, [f"study={tmp_path / stage}", "training.few.steps=12", f"training.zero_stage={stage}"])
        )
        for stage in "30"
    )
    for plan in (shared, alone):
        every = [node.job for node in plan.nodes.values() if isinstance(node.job, ExpertJob)]
        jobs = [job for job in every if job.data[0][0].shots]
        packs = make_packs(jobs, plan.config.training)
        assert len(packs) == 1
        if plan is shared:
            work = Sharded(plan.materials, plan.config.training)
            assert run_packs(packs, work, RuntimeSettings(workers=2), str(tmp_path / "ray")) == {}
        else:
            ExpertTraining(plan.materials, plan.config.training).train(packs[0], Alone())
    for target in shared.config.targets:
        ours, theirs = (flat(plan.materials.expert(f"experts/{target}")) for plan in (shared, alone))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_what_was_committed_is_not_trained_or_committed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker may die between a commit and the word of it; whoever takes the pack then finds it."""
    plan = Plan.of(load_config(make_study(tmp_path)))
    jobs = [node.job for node in plan.nodes.values() if isinstance(node.job, ExpertJob)]
    (pack,) = make_packs([job for job in jobs if job.name in ("alpha@2#0", "beta@2#1")], plan.config.training)
    work, store = ExpertTraining(plan.materials, plan.config.training), plan.store
    assert work.train(pack, Alone()) == {}
    first, second = ((artifact, store.manifest(artifact)) for artifact in (job.artifacts[0] for job in pack.jobs))
    store.discard(first[0])
    assert work.train(pack, Alone()) == {}
    again, kept = store.manifest(first[0]), store.manifest(second[0])
    assert kept == second[1] and again is not None and first[1] is not None and again["files"] == first[1]["files"]
    monkeypatch.setattr(work, "_trained", lambda *_: pytest.fail("it was trained again"))
    assert work.train(pack, Alone()) == {}
