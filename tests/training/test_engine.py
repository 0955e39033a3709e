"""The engine against a plain torch AdamW loop, in one process, without Ray."""

from __future__ import annotations

import gc
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from processes import run_two
from torch import Tensor, nn

from pitune.errors import PituneError
from pitune.training import guard
from pitune.training.engine import Engine, EngineSettings

EXPERTS, ROWS, WIDTH, RANK, STEPS, RATE = 3, 5, 16, 2, 6, 1e-2
Stage = Literal[0, 1, 2, 3]
Precision = Literal["fp32", "bf16", "fp16"]
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STAGES: tuple[Stage, ...] = (0, 1, 2, 3)
Tamper = Callable[[int, Tensor], Tensor]


class Site(nn.Module):
    """A frozen linear layer and E low-rank updates of it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.down = nn.Parameter(0.1 * torch.randn(EXPERTS, WIDTH, RANK))
        self.up = nn.Parameter(0.1 * torch.randn(EXPERTS, RANK, WIDTH))

    def forward(self, rows: Tensor) -> Tensor:
        frozen: Tensor = self.base(rows)
        return frozen + rows @ self.down @ self.up


class Model(nn.Module):
    """Two sites and a frozen norm: (E, rows, width) in, the same out; computes in a type of its own."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.sites = nn.ModuleList(Site() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH).requires_grad_(False)
        self.dtype = dtype
        for site in self.sites:
            base = site.get_parameter("base.weight")
            base.data = base.data.to(dtype)

    def forward(self, rows: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=self.dtype, enabled=self.dtype != torch.float32):
            for site in self.sites:
                rows = torch.relu(site(rows)) + rows
            normed: Tensor = self.norm(rows)
        return normed


def model(precision: Precision = "fp32") -> Model:
    torch.manual_seed(0)
    return Model(TYPES[precision])


def settings_for(stage: Stage, precision: Precision) -> EngineSettings:
    return EngineSettings(stage, scale_losses=precision == "fp16")


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    shape = (EXPERTS, ROWS, WIDTH)
    return [(torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)) for _ in range(STEPS)]


def losses_of(output: Tensor, target: Tensor) -> Tensor:
    return ((output.float() - target) ** 2).mean((1, 2))


def plain(weight_decay: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Train without the engine; return the losses (steps, E) and the trained parameters."""
    trained = model()
    parameters = {name: p for name, p in trained.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=RATE, weight_decay=weight_decay)
    history = []
    for rows, target in batches():
        losses = losses_of(trained(rows), target)
        optimizer.zero_grad()
        losses.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        history.append(losses.detach())
    return torch.stack(history), {name: p.detach() for name, p in parameters.items()}


def go(engine: Engine, steps: range = range(STEPS), tamper: Tamper = lambda step, losses: losses) -> Tensor:
    """Train with an engine; return the losses (steps, E)."""
    history = []
    for step in steps:
        rows, target = batches()[step]
        engine.set_learning_rate(RATE)
        losses = losses_of(engine(rows), target)
        engine.backward(tamper(step, losses))
        engine.step()
        history.append(losses.detach())
    return torch.stack(history)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("stage", STAGES)
def test_equals_a_plain_adamw_loop(stage: Stage) -> None:
    expected_losses, expected = plain(weight_decay=0.1)
    with Engine(model(), EngineSettings(stage, weight_decay=0.1), experts=EXPERTS) as engine:
        losses = go(engine)
        found = engine.gathered()
    torch.testing.assert_close(losses, expected_losses, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_two_workers_whose_gatherings_end_late_equal_a_plain_adamw_loop() -> None:
    """gloo ends what is under way in any order: what nobody waits for may not be there when it is used."""
    run_two(__file__)


def work() -> None:
    """What each of the two does: train with ZeRO-3, where a gathering begins no earlier than somebody waits for it."""
    gather = torch.distributed.all_gather_into_tensor

    class Late:
        def __init__(self, **given: Any) -> None:
            self.given = given

        def wait(self) -> None:
            if self.given:
                gather(**self.given)
                self.given = {}

    def begin(output_tensor: Tensor, input_tensor: Tensor, group: Any = None, async_op: bool = False) -> Any:
        part = input_tensor.clone()  # it may be a part of the output
        output_tensor.fill_(math.nan)
        late = Late(output_tensor=output_tensor, input_tensor=part, group=group)
        return late if async_op else late.wait()

    expected_losses, expected = plain()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributed, "all_gather_into_tensor", begin)
        with Engine(model(), EngineSettings(3), experts=EXPERTS) as engine:
            losses = go(engine)
            found = engine.gathered()
    torch.testing.assert_close(losses, expected_losses, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_accumulation_equals_one_large_step(stage: Stage) -> None:
    rows, target = batches()[0]
    with Engine(model(), EngineSettings(stage), experts=EXPERTS) as whole:
        whole.set_learning_rate(RATE)
        whole.backward(losses_of(whole(rows[:, :4]), target[:, :4]))
        assert whole.step() is not None
        expected = whole.gathered()
    with Engine(model(), EngineSettings(stage, gradient_accumulation=2), experts=EXPERTS) as parts:
        parts.set_learning_rate(RATE)
        for part in (slice(0, 2), slice(2, 4)):
            parts.backward(losses_of(parts(rows[:, part]), target[:, part]))
            assert (parts.step() is None) == (part.start == 0)
        torch.testing.assert_close(parts.gathered(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", STAGES)
def test_an_expert_that_is_not_a_number_leaves_the_others_bit_identical(stage: Stage, precision: Precision) -> None:
    poison = torch.tensor([1.0, float("nan"), 1.0])
    settings = settings_for(stage, precision)
    with Engine(model(precision), settings, experts=EXPERTS) as healthy:
        go(healthy)
        expected = healthy.gathered()
    with Engine(model(precision), settings, experts=EXPERTS) as sick:
        go(sick, tamper=lambda step, losses: losses * poison if step >= 2 else losses)
        found = sick.gathered()
    for name, values in found.items():
        assert values.isfinite().all()
        assert torch.equal(values[0], expected[name][0])
        assert torch.equal(values[2], expected[name][2])
        assert not torch.equal(values[1], expected[name][1])


def test_weights_that_are_not_numbers_leave_the_others_bit_identical() -> None:
    broken = model()
    with torch.no_grad():
        broken.get_parameter("sites.0.down")[1] = float("inf")
    with (
        Engine(model(), EngineSettings(2), experts=EXPERTS) as healthy,
        Engine(broken, EngineSettings(2), EXPERTS) as sick,
    ):
        expected, found = go(healthy), go(sick)
    assert torch.equal(found[:, [0, 2]], expected[:, [0, 2]])
    assert not found[:, 1].isfinite().any()


def test_each_expert_has_its_own_loss_scale() -> None:
    with Engine(model("fp16"), settings_for(2, "fp16"), experts=EXPERTS) as engine:
        first = engine.loss_scale
        rows, target = batches()[0]
        engine.set_learning_rate(RATE)
        engine.backward(losses_of(engine(rows), target) * torch.tensor([1.0, 1.0, 1e6]))
        bad = engine.step()
        assert bad is not None
        assert bad.tolist() == [False, False, True]
        assert (engine.loss_scale / first).tolist() == [1.0, 1.0, 0.5]


def test_a_loss_scale_grows_after_good_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "GROWTH_INTERVAL", 3)
    with Engine(model("fp16"), settings_for(0, "fp16"), experts=EXPERTS) as engine:
        first = engine.loss_scale
        go(engine, range(2))
        assert torch.equal(engine.loss_scale, first)
        go(engine, range(2, 3))
        assert torch.equal(engine.loss_scale, 2 * first)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_full_precision(precision: Precision) -> None:
    expected, _ = plain()
    with Engine(model(precision), settings_for(1, precision), experts=EXPERTS) as engine:
        losses = go(engine)
        assert all(values.dtype == torch.float32 for values in engine.gathered().values())
    torch.testing.assert_close(losses, expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("stage", STAGES)
def test_resuming_is_bit_identical(stage: Stage, precision: Precision, tmp_path: Path) -> None:
    settings = settings_for(stage, precision)
    with Engine(model(precision), settings, experts=EXPERTS) as through:
        go(through, range(3))
        through.save(tmp_path)
        go(through, range(3, STEPS))
        expected = through.gathered()
    with Engine(model(precision), settings, experts=EXPERTS) as resumed:
        resumed.load(tmp_path)
        go(resumed, range(3, STEPS))
        assert same(resumed.gathered(), expected)


def test_loading_from_an_empty_folder_is_one_clear_line(tmp_path: Path) -> None:
    with Engine(model(), EngineSettings(), experts=EXPERTS) as engine, pytest.raises(PituneError, match="no DeepSpeed"):
        engine.load(tmp_path)


@pytest.mark.parametrize("stage", STAGES)
def test_closing_leaves_a_plain_model_and_nothing_behind(stage: Stage) -> None:
    made = model()
    frozen = {name: p.detach().clone() for name, p in made.named_parameters() if not p.requires_grad}
    linear = nn.functional.linear
    for _ in range(3):
        engine = Engine(made, EngineSettings(stage), experts=EXPERTS)
        go(engine, range(2))
        whole = engine.gathered()
        inside = engine(batches()[0][0]).detach()
        engine.close()
        engine.close()
    now = {name: p.detach() for name, p in made.named_parameters()}
    assert same({**frozen, **whole}, now)
    torch.testing.assert_close(made(batches()[0][0]), inside)
    assert nn.functional.linear is linear
    assert all(not vars(p) for p in made.parameters())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in made.modules())
    del engine
    gc.collect()
    assert not [o for o in gc.get_objects() if type(o).__name__ == "DeepSpeedEngine"]


def test_closing_leaves_what_others_put_on_the_model() -> None:
    made = model()
    seen: list[int] = []
    handle = made.norm.register_forward_hook(lambda *_: seen.append(1))
    made.note = "kept"  # type: ignore[assignment]
    with Engine(made, EngineSettings(3), experts=EXPERTS) as engine:
        go(engine, range(1))
    seen.clear()
    made(batches()[0][0])
    assert seen == [1] and made.note == "kept"
    handle.remove()
    made(batches()[0][0])
    assert seen == [1]


def test_it_computes_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # a GPU that the model is not on
    with Engine(model(), EngineSettings(2), experts=EXPERTS) as engine:
        go(engine, range(1))
        assert engine.mean_over_workers(torch.ones(2)).tolist() == [1.0, 1.0]
    with pytest.raises(PituneError, match="the model is on meta, DeepSpeed in this process on cpu"):
        Engine(model().to("meta"), EngineSettings(), experts=EXPERTS)


def test_deepspeed_is_imported_only_where_something_is_trained() -> None:
    code = "import sys, pitune.training.work; sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_an_engine_costs_little() -> None:
    begun = time.process_time()
    for _ in range(10):
        with Engine(model(), EngineSettings(2), experts=EXPERTS) as engine:
            go(engine, range(1))
    assert time.process_time() - begun < 5.0


def test_settings_and_models_that_cannot_work_are_refused() -> None:
    with pytest.raises(PituneError, match="zero_stage: 4"):
        EngineSettings(zero_stage=4)  # type: ignore[arg-type]
    with pytest.raises(PituneError, match="at least 1"):
        EngineSettings(gradient_accumulation=0)
    with pytest.raises(PituneError, match="no trainable"):
        Engine(model().requires_grad_(False), EngineSettings())
    with pytest.raises(PituneError, match=r"\(4, …\) would be right"):
        Engine(model(), EngineSettings(), experts=4)
    with pytest.raises(PituneError, match=r"torch\.float32"):
        Engine(model().double(), EngineSettings(), experts=EXPERTS)
