"""The DeepSpeed engine: a frozen backbone, few trainable parameters with an expert axis, ZeRO stage 0 to 3.

What is notable:

- This is the only module that imports DeepSpeed. Nothing is compiled: on a CPU it runs over gloo with torch's AdamW.
- The experts are float32 in every precision: what computes in bf16 or fp16 is the backbone, which sees to it itself.
  DeepSpeed is told float32 and so never skips a step.
- Nothing couples two experts: no clipping by a norm over all, and one loss scale for each expert. A gradient slice that
  is not finite is zeroed, for that expert alone, before DeepSpeed or Adam sees it.
- A long-lived process makes many engines, one after another: :meth:`Engine.close` leaves the model as it was before,
  without a hook, an attribute or a buffer of DeepSpeed's, holding the trained values.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pitune.errors import PituneError

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import deepspeed.ops
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from deepspeed.utils import logger as deepspeed_logger

TAG = "shards"
"""The name under which DeepSpeed keeps a checkpoint inside the folder that it is given."""
FIRST_SCALE = 2.0**16
GROWTH_INTERVAL = 2000
"""Steps without overflow after which an expert's loss scale doubles (torch's GradScaler has the same numbers)."""


@dataclass(frozen=True)
class EngineSettings:
    """How the experts of a pack are optimised.

    Attributes:
        zero_stage: what a gang's workers share out: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters
            (the backbone's too).
        gradient_accumulation: backward passes that make one optimizer step.
        weight_decay: AdamW's, decoupled.
        scale_losses: multiply each expert's loss by a scale of its own, which adapts: for models that compute in fp16.
    """

    zero_stage: Literal[0, 1, 2, 3] = 0
    gradient_accumulation: int = 1
    weight_decay: float = 0.0
    scale_losses: bool = False

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise PituneError(f"zero_stage: {self.zero_stage!r} found; 0, 1, 2 or 3 would be right")
        if self.gradient_accumulation < 1:
            raise PituneError(f"gradient_accumulation: {self.gradient_accumulation} found; at least 1 would be right")
        if not 0.0 <= self.weight_decay < float("inf"):
            raise PituneError(f"weight_decay: {self.weight_decay} found; a number that is at least 0 would be right")


def start_distributed() -> None:
    """Join the process group of this worker, or make one of a single process where there is none.

    Inside a Ray Train worker the group is there already; under ``torchrun`` it is made from the environment; in a
    notebook, a test or a benchmark the process is alone. Calling it again does nothing.
    """
    deepspeed_logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # DeepSpeed's calls
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # or it is compiled, which takes minutes
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it; Ray Train and torchrun have set it
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if not dist.is_initialized():
        if "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, verbose=False)


class Engine:
    """A model whose trainable parameters are optimised by DeepSpeed; use it in a ``with`` statement or close it.

    Args:
        model: its parameters with ``requires_grad`` are trained, float32, and the rest is frozen. It must not change
            while the engine lives; afterwards it is a plain model again, with the trained values.
        settings: ZeRO stage, accumulation, weight decay, loss scaling.
        experts: E, the size of the leading axis of every trainable parameter. 1 lets them have any shape and keeps
            them together as one expert.

    Raises:
        PituneError: nothing is trainable, or a trainable parameter is not float32 or lacks the expert axis.

    With several workers every call is collective. Each worker brings its own rows; gradients are averaged over the
    workers, so a loss that is a mean over equally many rows on each worker equals the mean over all rows.
    """

    def __init__(self, model: nn.Module, settings: EngineSettings, experts: int = 1) -> None:
        self.model = model
        self.settings = settings
        self._trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        _check_trainable(self._trainable, experts)
        start_distributed()
        self._guard = GradientGuard(experts, settings.scale_losses, _device())
        self._before = _Snapshot(model)
        self._guard.watch(self._trainable.values())
        optimizer = torch.optim.AdamW(self._trainable.values(), lr=0.0, weight_decay=settings.weight_decay)
        self._engine: Any = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=_deepspeed_config(settings, sum(p.numel() for p in self._trainable.values())),
            dist_init_required=False,
        )[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error the others may never come to a gathering: this process ends, and what it holds with it.
        if kind is None or dist.get_world_size() == 1:
            self.close()

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run the model's forward pass, which sees to its precision itself; in evaluation too."""
        return self._engine(*inputs, **named)

    @property
    def loss_scale(self) -> Tensor:
        """The loss scale of each expert, (E,); all ones unless losses are scaled."""
        return self._guard.scale.clone()

    def backward(self, losses: Tensor) -> None:
        """Add the gradients of one loss per expert.

        Args:
            losses: (E,), the mean loss over each expert's rows; or one number where E is 1. An expert whose loss is not
                finite gets no gradient from this call; the others get exactly what they would get without it.
        """
        losses = losses.float().reshape(-1)
        if losses.numel() != self._guard.experts:
            raise ValueError(f"losses has {losses.numel()} elements, the engine {self._guard.experts} experts")
        self._guard.start()
        self._engine.backward((losses * self._guard.scale).sum())

    def step(self) -> Tensor | None:
        """Call once after each backward pass; where that ends an accumulation, the optimizer steps.

        Returns:
            None between the steps; at a step the experts, (E,) bool, that had a gradient that was not finite on any
            worker; where losses are scaled that is an overflow, and the scale of those experts was halved.
        """
        stepped = bool(self._engine.is_gradient_accumulation_boundary())
        self._engine.step()
        return self._guard.finish() if stepped else None

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate

    def gathered(self) -> dict[str, Tensor]:
        """Return a whole, float32 copy of every trainable parameter by its name in the model. All workers must call."""
        with self._whole(list(self._trainable.values())):
            return {name: p.detach().clone() for name, p in self._trainable.items()}

    def mean_over_workers(self, values: Tensor) -> Tensor:
        """Return the mean of every worker's ``values``, on the CPU. All workers must call."""
        mean = values.detach().to(_device(), torch.float32, copy=True)
        dist.all_reduce(mean)
        return (mean / dist.get_world_size()).cpu()

    def save(self, folder: Path) -> None:
        """Write this worker's shards of the parameters and the optimizer into ``folder``. All workers must call.

        The shards are DeepSpeed's own files, for resuming with the same settings and number of workers, and nothing
        else: what lasts is :meth:`gathered`.
        """
        (folder / TAG).mkdir(parents=True, exist_ok=True)  # DeepSpeed makes it for rank 0 only
        self._engine.save_checkpoint(
            str(folder),
            tag=TAG,
            client_state={"guard": self._guard.state()},
            save_latest=False,
            exclude_frozen_parameters=True,
        )

    def load(self, folder: Path) -> None:
        """Go on from what :meth:`save` wrote, bit for bit. All workers must call.

        Raises:
            PituneError: there are no shards in ``folder``.
        """
        if not (folder / TAG).is_dir():
            raise PituneError(f"{folder}: holds no DeepSpeed shards; delete it and run again")
        state = self._engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)[1]
        self._guard.restore(state["guard"])

    def close(self) -> None:
        """Give everything back; leave a plain model with the trained values. All workers must call; twice is fine."""
        if self._engine is None:
            return
        self._guard.release()
        self._engine.destroy()
        if self.settings.zero_stage == 3:
            for parameter in self.model.parameters():
                with self._whole([parameter]):
                    whole = parameter.data.clone()
                self._before.strip(parameter)
                parameter.data = whole
        for parameter in self._trainable.values():
            parameter.grad = None
            parameter.data = parameter.data.clone()  # no longer a view of DeepSpeed's flat buffer
        self._before.restore()
        self._engine = None

    def _whole(self, parameters: list[nn.Parameter]) -> Any:
        """Return a context in which ``parameters`` have their full shape."""
        return deepspeed.zero.GatheredParameters(parameters, enabled=self.settings.zero_stage == 3)


class GradientGuard:
    """Keeps experts apart: a loss scale for each, and a hook on each leaf that zeroes slices that are not finite.

    The hook sees the gradient, (E, …), before it is accumulated, reduced or clipped by anyone.

    Args:
        experts: E.
        scaled: whether losses are scaled.
        device: where the gradients are.
    """

    def __init__(self, experts: int, scaled: bool, device: torch.device) -> None:
        self.experts = experts
        self.scaled = scaled
        self.scale = torch.full((experts,), FIRST_SCALE if scaled else 1.0, device=device)
        self._good_steps = torch.zeros(experts, device=device)
        self._bad = torch.zeros(experts, dtype=torch.bool, device=device)
        self._inverse = 1.0 / self.scale
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def watch(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put the hook on every one of ``parameters``."""
        self._handles += [parameter.register_hook(self._hook) for parameter in parameters]  # type: ignore[no-untyped-call]

    def release(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def start(self) -> None:
        """Begin a backward pass with the present scales."""
        self._inverse = 1.0 / self.scale

    def finish(self) -> Tensor:
        """End an optimizer step: return the experts, (E,) bool, that were not finite, and adapt their scales."""
        bad = self._bad.clone()
        if dist.get_world_size() > 1:
            flags = bad.to(torch.int32)
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
            bad = flags.bool()
        self._bad.zero_()
        if self.scaled:
            self._good_steps = torch.where(bad, 0.0, self._good_steps + 1.0)
            grown = self._good_steps >= GROWTH_INTERVAL
            self.scale = torch.where(bad, (self.scale * 0.5).clamp(min=1.0), self.scale * (1.0 + grown.float()))
            self._good_steps = torch.where(grown, 0.0, self._good_steps)
        return bad

    def state(self) -> dict[str, Tensor]:
        """Return what :meth:`restore` needs."""
        return {"scale": self.scale, "good_steps": self._good_steps, "bad": self._bad}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up the state that another guard returned."""
        self.scale = state["scale"].to(self.scale.device)
        self._good_steps = state["good_steps"].to(self.scale.device)
        self._bad = state["bad"].to(self.scale.device)

    def _hook(self, gradient: Tensor) -> Tensor | None:
        """Return ``gradient`` without its scales and without what is not finite, or None to leave it as it is."""
        rows = gradient.reshape(self.experts, -1)  # (E, numbers per expert)
        if self.scaled:
            rows = rows * self._inverse.unsqueeze(1)
        bad = ~rows.sum(1).isfinite()  # one pass; a sum that overflows is no gradient either
        if gradient.is_cuda or bad.any():  # on a GPU, asking would wait for it
            self._bad |= bad
            rows = rows.masked_fill(bad.unsqueeze(1), 0.0)
        elif not self.scaled:
            return None
        return rows.view(gradient.shape)


class _Snapshot:
    """What a model looked like before DeepSpeed came: the names of its attributes and the ids of its hooks."""

    HOOKS = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks_with_kwargs",
        "_forward_hooks_always_called",
    )

    def __init__(self, model: nn.Module) -> None:
        self._linear = nn.functional.linear
        self._modules = [
            (
                module,
                set(vars(module)),
                {name: set(vars(module)[name]) for name in self.HOOKS},
                type(module._parameters),
            )
            for module in model.modules()
        ]
        self._parameters = {id(parameter): set(vars(parameter)) for parameter in model.parameters()}

    def strip(self, parameter: nn.Parameter) -> None:
        """Remove the attributes that ``parameter`` did not have."""
        for name in set(vars(parameter)) - self._parameters[id(parameter)]:
            delattr(parameter, name)

    def restore(self) -> None:
        """Remove every attribute and hook that was not there, and what ZeRO-3 leaves in torch and in itself."""
        setattr(nn.functional, "linear", self._linear)  # noqa: B010
        _forget_modules()
        for module, names, hooks, kind in self._modules:
            for name, known in hooks.items():
                for key in set(vars(module)[name]) - known:
                    del vars(module)[name][key]
            if type(module._parameters) is not kind:
                vars(module)["_parameters"] = kind(module._parameters)
            for name in set(vars(module)) - names:
                delattr(module, name)
            for parameter in module._parameters.values():
                if parameter is not None:
                    self.strip(parameter)


def _device() -> torch.device:
    """Return where this worker computes."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _forget_modules() -> None:
    """Empty the two process-wide places where ZeRO-3 keeps the modules, and so the engines, that it has seen."""
    parameter_offload.FWD_MODULE_STACK.clear()
    cached = vars(PartitionedParameterCoordinator).get("_PartitionedParameterCoordinator__params_to_release")
    for cell in getattr(cached, "__closure__", None) or ():
        if hasattr(cell.cell_contents, "cache_clear"):
            cell.cell_contents.cache_clear()


def _deepspeed_config(settings: EngineSettings, trainable: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration; ``trainable`` numbers bound its buffers, which are large by default."""
    bucket = max(min(trainable, 500_000_000), 1)
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "gradient_clipping": 0.0,
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": settings.zero_stage, "reduce_bucket_size": bucket, "overlap_comm": False},
    }


def _check_trainable(trainable: Mapping[str, nn.Parameter], experts: int) -> None:
    """Raise where ``trainable`` is empty, not float32, or without the expert axis."""
    if not trainable:
        raise PituneError("the model has no trainable parameter; attach a bank of experts first")
    for name, parameter in trainable.items():
        if parameter.dtype != torch.float32:
            raise PituneError(f"parameter {name}: is {parameter.dtype}; what is trained must be torch.float32")
        if experts > 1 and (parameter.dim() == 0 or parameter.shape[0] != experts):
            raise PituneError(f"parameter {name}: has shape {tuple(parameter.shape)}; ({experts}, …) would be right")
