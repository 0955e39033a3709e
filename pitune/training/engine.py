"""The DeepSpeed engine: a frozen backbone, few trainable parameters with an expert axis, ZeRO stage 0 to 3.

What is notable:

- This is the only module that imports DeepSpeed, and only where something is trained: it takes five seconds.
- Where the model is, is where it computes: on a CPU over gloo with torch's AdamW, and nothing is compiled.
- The experts are float32 in every precision: what computes in bf16 or fp16 is the backbone, which sees to it itself.
  DeepSpeed is told float32 and so never skips a step.
- Nothing couples two experts: no clipping by a norm over all, and one loss scale for each expert. A gradient slice that
  is not finite is zeroed, for that expert alone, before DeepSpeed or Adam sees it.
- A long-lived process makes many engines, one after another: :meth:`Engine.close` leaves the model as it was before,
  without a hook, an attribute or a buffer of DeepSpeed's, holding the trained values.
"""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pitune.errors import PituneError
from pitune.training.guard import GradientGuard

TAG = "shards"
"""The name under which DeepSpeed keeps a checkpoint inside the folder that it is given."""


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


def start_distributed(device: torch.device) -> None:
    """Import DeepSpeed, and join this worker's process group, or make one of a single process where there is none.

    Inside a Ray Train worker the group is there already; under ``torchrun`` it is made from the environment; in a
    notebook, a test or a benchmark the process is alone. Calling it again does nothing.

    Args:
        device: where the model is; that of the first call is this process's.

    Raises:
        PituneError: DeepSpeed has computed elsewhere in this process.
    """
    os.environ.setdefault("DS_ACCELERATOR", device.type)  # read once, by the import
    import deepspeed
    import deepspeed.ops

    found = deepspeed.accelerator.get_accelerator().device_name()
    if found != device.type:
        raise PituneError(f"the model is on {device.type}, DeepSpeed in this process on {found}; use another process")
    deepspeed.utils.logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # DeepSpeed's calls
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # or it is compiled, which takes minutes
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it; Ray Train and torchrun have set it
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not dist.is_initialized():
        if "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    if backend == "gloo":
        _gather_at_once(deepspeed.comm.comm.cdb)


def _gather_at_once(backend: Any) -> None:
    """Have a backend of DeepSpeed's gather before it returns, also where it is to be waited for later; once is enough.

    Of many parameters that it gathers ZeRO-3 waits for the last only (DeepSpeed 0.19). NCCL ends them in their order;
    gloo's threads may not, so that now and then a step computed with what was not there yet.
    """
    gather = backend.all_gather_function
    if hasattr(gather, "at_once"):
        return

    def gathered(*inputs: Any, async_op: bool = False, **named: Any) -> Any:
        work = gather(*inputs, async_op=True, **named)
        work.wait()
        return work if async_op else None

    vars(gathered)["at_once"] = True
    backend.all_gather_function = gathered


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
        self._device = next(model.parameters()).device
        start_distributed(self._device)
        self._guard = GradientGuard(experts, settings.scale_losses, self._device)
        self._before = _Before(model)
        self._guard.watch(self._trainable.values())
        optimizer = torch.optim.AdamW(self._trainable.values(), lr=0.0, weight_decay=settings.weight_decay)
        import deepspeed

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
        mean = values.detach().to(self._device, torch.float32, copy=True)
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
                parameter.data = whole
            _forget_modules()
        for parameter in self._trainable.values():
            parameter.grad = None
            parameter.data = parameter.data.clone()  # no longer a view of DeepSpeed's flat buffer
        self._before.restore()
        self._engine = None

    def _whole(self, parameters: list[nn.Parameter]) -> Any:
        """Return a context in which ``parameters`` have their full shape."""
        import deepspeed

        return deepspeed.zero.GatheredParameters(parameters, enabled=self.settings.zero_stage == 3)


class _Before:
    """What a model and torch were before DeepSpeed came, to be what they are again."""

    OWN = vars(nn.Module()).keys()  # where torch keeps a module's parameters and hooks

    def __init__(self, model: nn.Module) -> None:
        self._linear = nn.functional.linear
        self._parameters = [(vars(parameter), set(vars(parameter))) for parameter in model.parameters()]
        self._modules = []
        for held in map(vars, model.modules()):
            own = {name: held[name] for name in self.OWN if isinstance(held.get(name), dict)}
            self._modules.append((held, set(held), [(name, kept, dict(kept)) for name, kept in own.items()]))

    def restore(self) -> None:
        """Put back what was there, and remove whatever else there is by now."""
        setattr(nn.functional, "linear", self._linear)  # noqa: B010
        for held, names, own in self._modules:
            for name, kept, content in own:
                held[name] = kept
                kept.clear()
                kept.update(content)
            _keep(held, names)
        for held, names in self._parameters:
            _keep(held, names)


def _keep(held: dict[str, Any], names: set[str]) -> None:
    for name in held.keys() - names:
        del held[name]


def _forget_modules() -> None:
    """Empty the two process-wide places where ZeRO-3 keeps the modules, and so the engines, that it has seen."""
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    parameter_offload.FWD_MODULE_STACK.clear()
    cached = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    inspect.getclosurevars(cached).nonlocals["func"].cache_clear()  # a cache inside a decorator


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
