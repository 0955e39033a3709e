"""What a backbone is: frozen towers, how examples become their input, and what of them runs only once.

A *tower* is a stack of layers that turns examples of some modality into vectors. Experts act in its upper layers; what
lies below the first expert, the *trunk*, and a whole tower without experts give the same for the same input whatever
the experts are. **What no expert touches runs once**: its output is kept by the content of its input, in one cache
whose bytes are bounded for the whole process.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from pitune.backbones import cache, classtoken
from pitune.backbones.classtoken import CLASS_TOKEN
from pitune.backbones.standin import noted, replaced
from pitune.backbones.tower import Encoded, Inputs, Site, Tower
from pitune.settings import Settings

if TYPE_CHECKING:
    from pitune.tasks.task import Example

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ROWS_AT_ONCE = {"cpu": 64, "cuda": 512}
"""By device: rows of a batch in which nothing is learnt. What more of them write no processor's cache holds."""
LOOKED_UP_AT_ONCE = 4096
"""Rows of such a batch that no expert touches."""
CLASS_TOKENS = 8
"""How many rows whose class token alone runs, with the tokens beside it, count as one."""


class BackboneSettings(Settings, ABC):
    """The settings of one family of backbones, and the way to open one.

    ``reads`` are the modalities of the tasks that it can be asked about; ``uris`` the fields that name what it is
    opened from, ``uri`` the model that experts act in.
    """

    reads: ClassVar[tuple[str, ...]]
    uris: ClassVar[tuple[str, ...]] = ("uri",)
    kind: str
    uri: str

    @abstractmethod
    def open(self, folder: Path, precision: Precision = "fp32") -> Backbone:
        """Open the model in ``folder``, which ``uri`` names; what else it takes, a family fetches itself.

        Raises:
            PituneError: the folder holds no such model, or one that would run code of its own.
        """

    @abstractmethod
    def cost(self, example: Example) -> int:
        """Return about how many tokens an example is, without opening the model: what a plan reckons with."""


class Backbone(nn.Module, ABC):
    """A frozen model, always in evaluation mode: dropout would only couple results to luck.

    A subclass sets the attributes and says in five methods what is particular to its family. What is shared lies here:
    where a module is, skipping layers, the cache.

    Args:
        model: the plain Hugging Face model, whose experts attach to its modules.
        towers: by name.
        examples_tower: who reads examples.
        texts_tower: who reads candidates' texts; in a text encoder the same one.
        precision: the type of the frozen matrices, in which the layers compute; the experts, norms, biases, pooling and
            losses are float32 always.
    """

    _openings: ClassVar[int] = 0

    def __init__(
        self, model: nn.Module, towers: Sequence[Tower], examples_tower: str, texts_tower: str, precision: Precision
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.towers = {tower.name: tower for tower in towers}
        self.examples_tower, self.texts_tower = examples_tower, texts_tower
        self._dtype = DTYPES[precision]
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(self._dtype if parameter.dim() > 1 else torch.float32)
        attend_by = getattr(model, "set_attn_implementation", None)
        if attend_by and self._dtype is not torch.float32 and not torch.cuda.is_available():
            attend_by("eager")  # on processors, the fused attention's backward pass takes two thirds of a step there
        Backbone._openings += 1
        self._number = Backbone._openings  # what is kept of one backbone is not another's
        self._tuples: dict[str, bool] = {}  # by tower: whether its layers return tuples
        self._alone: dict[str, int] = {}  # towers that pool the class token, and nothing else: its state's numbers

    # --- what a family says ------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Return the input of each example, for ``examples_tower``."""

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> list[Encoded]:
        """Return the input of each candidate's text, for ``texts_tower``."""

    @abstractmethod
    def collate(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Pad rows of one tower to the longest: tensors (rows, …) on the CPU."""

    def above(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """Return what :meth:`embed` takes of rows whose trunk is there already: the same, where a family says nothing.

        A family whose inputs are dear (pictures to decode) gives stand-ins of their shapes here.
        """
        return self.collate(rows)

    @abstractmethod
    def embed(self, inputs: Inputs) -> Tensor:
        """Run the tower and pool: (rows, width), of any length and type. Skipped layers are no business of this."""

    # --- what all share ----------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        found: torch.device = next(self.model.parameters()).device
        return found

    @property
    def rows_at_once(self) -> int:
        """How many rows, of all who act together, to run in one batch of a task: as many as its caches hold."""
        return ROWS_AT_ONCE.get(self.device.type, ROWS_AT_ONCE["cuda"])

    def scored_at_once(self, experts: int, firsts: Mapping[str, int], conditional: bool) -> int:
        """Return of how many examples to ask each of so many experts in one batch: they read all candidates for each.

        Args:
            experts: how many act together.
            firsts: the lowest layer with an expert, by tower.
            conditional: whether they read candidates beside each example anew.
        """
        first = firsts.get(self.examples_tower)
        if first is None and not conditional:
            most = LOOKED_UP_AT_ONCE
        elif first == CLASS_TOKEN:
            most = self.rows_at_once * CLASS_TOKENS
        else:
            most = self.rows_at_once
        return max(1, most // experts)

    @property
    def is_fp16(self) -> bool:
        """Whether the layers compute in fp16, in which small gradients are lost unless the loss is scaled."""
        return self._dtype is torch.float16

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode."""
        return super().train(False)

    def layers(self, tower: str) -> nn.ModuleList:
        """Return a tower's stack of layers."""
        stack = self.model.get_submodule(self.towers[tower].stack)
        assert isinstance(stack, nn.ModuleList)
        return stack

    def locate(self, path: str) -> Site | None:
        """Return in which tower and layer the module at ``path`` is; None where it is in no tower."""
        for tower in self.towers.values():
            rest = path.removeprefix(tower.stack + ".") if path.startswith(tower.stack + ".") else ""
            if rest:
                return Site(tower.name, path, int(rest.partition(".")[0]))
            if tower.root and f"{path}.".startswith(tower.root + "."):
                return Site(tower.name, path, -1)
        return None

    def firsts(self, paths: Sequence[str]) -> dict[str, int]:
        """Return the lowest layer with one of the sites at ``paths``, by tower; towers without a site are not in it.

        ``CLASS_TOKEN`` in place of the last, where no more than its class token has to run.
        """
        found: dict[str, int] = {}
        sites = [site for site in map(self.locate, paths) if site is not None]
        for site in sites:
            layer = max(0, site.layer)  # what is read by the embeddings is read by the lowest layer
            found[site.tower] = min(layer, found.get(site.tower, layer))
        for name in self._alone:
            last = f"{self.towers[name].stack}.{self.towers[name].depth - 1}"
            if [site.path for site in sites if site.tower == name] == [last]:
                found[name] = CLASS_TOKEN
        return found

    def forward(self, inputs: Inputs) -> Tensor:
        """Embed a batch: (rows, width), float32, of length 1."""
        if inputs.embeddings is not None:
            return inputs.embeddings
        with self._skipping(inputs), self._autocast():
            pooled = self.embed(inputs)
        return nn.functional.normalize(pooled.float(), dim=-1)

    def inputs(self, rows: Sequence[Encoded], firsts: Mapping[str, int]) -> Inputs:
        """Return a padded batch of rows of one tower, with what no expert touches computed or taken from the cache.

        Args:
            rows: one or more.
            firsts: the lowest layer with an expert, by tower; a tower that is not in it has none.
        """
        tower, first = rows[0].tower, firsts.get(rows[0].tower)
        if first == 0:
            return Inputs(tower, self._placed(self.collate(rows)))
        found = self.frozen(rows, first)
        if first is None:
            return Inputs(tower, embeddings=torch.stack(found))
        hidden = nn.utils.rnn.pad_sequence(found, batch_first=True)
        return Inputs(tower, self._placed(self.above(rows)), first, hidden)

    @torch.no_grad()
    def frozen(self, rows: Sequence[Encoded], first: int | None) -> list[Tensor]:
        """Return for each row what enters layer ``first``, (tokens, width); where None: its embedding, (width,).

        Rows of the same content are computed once.
        """
        found = {row.key: cache.CACHE.get((self._number, row.tower, first, row.key)) for row in rows}
        missing = sorted({row.key: row for row in rows if found[row.key] is None}.values(), key=lambda row: row.cost)
        for start in range(0, len(missing), self.rows_at_once):
            part = missing[start : start + self.rows_at_once]
            for row, state in zip(part, self.computed(part, first), strict=True):
                kept = (state if first is None else state[: row.cost]).clone()
                found[row.key] = kept
                if row.again:
                    cache.CACHE.put((self._number, row.tower, first, row.key), kept)
        states = [found[row.key] for row in rows]
        return [state for state in states if state is not None]

    def computed(self, rows: Sequence[Encoded], first: int | None) -> Tensor:
        """Compute what :meth:`frozen` returns, of rows of unlike content: (rows, tokens, width) or (rows, width)."""
        inputs = Inputs(rows[0].tower, self._placed(self.collate(rows)))
        found: Tensor = self(inputs) if first is None else self._below(inputs, first)
        return found

    @torch.no_grad()
    def averaged(self, groups: Sequence[tuple[Encoded, ...]]) -> Tensor:
        """Return the mean embedding of each group of rows that no expert touches, of length 1: (groups, width)."""
        tower = groups[0][0].tower
        keys = [(self._number, tower, None, b"".join(row.key for row in group)) for group in groups]
        found = [cache.CACHE.get(key) for key in keys]
        missing = [index for index, mean in enumerate(found) if mean is None]
        states = iter(self.frozen([row for index in missing for row in groups[index]], None))
        for index in missing:
            held = [next(states) for _ in groups[index]]
            if len(held) == 1:  # it has length 1 as it is, and was kept under the same key
                found[index] = held[0]
                continue
            found[index] = mean = nn.functional.normalize(torch.stack(held).mean(0), dim=0)
            cache.CACHE.put(keys[index], mean)
        return torch.stack([mean for mean in found if mean is not None])

    def _placed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def _below(self, inputs: Inputs, first: int) -> Tensor:
        """Run the layers below ``first``: (rows, tokens, width); or what ``CLASS_TOKEN`` needs."""
        layers = self.layers(inputs.tower)
        if first == CLASS_TOKEN:
            with classtoken.noting(layers) as states, self._autocast():
                self.embed(inputs)
            return states[0]
        with (
            noted(layers[first - 1]) as found,
            replaced(layers, range(first, len(layers)), self._tuples[inputs.tower], None),
            self._autocast(),
        ):
            self.embed(inputs)
        return found[0]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not torch.float32)

    @contextlib.contextmanager
    def _skipping(self, inputs: Inputs) -> Iterator[None]:
        """Skip the layers whose work a batch brings with it."""
        states, width = inputs.hidden, self.towers[inputs.tower].width
        if states is None:
            yield
            return
        layers, returns_tuple = self.layers(inputs.tower), self._tuples[inputs.tower]
        if inputs.first != CLASS_TOKEN:
            with replaced(layers, range(inputs.first), returns_tuple, states):
                yield
            return
        below = replaced(layers, range(len(layers) - 1), returns_tuple, states[..., :width])
        with below, classtoken.acting(layers[-1], states, width):
            yield

    @torch.no_grad()
    def try_out(self, row: Encoded) -> None:
        """Run a row's tower once, and note what its layers return; a family calls it when it is opened."""
        found: list[bool] = []
        handle = self.layers(row.tower)[0].register_forward_hook(
            lambda _, __, output: found.append(isinstance(output, tuple))
        )
        try:
            self(Inputs(row.tower, self._placed(self.collate([row]))))
        finally:
            handle.remove()
        self._tuples[row.tower] = found[0]

    @torch.no_grad()
    def try_class_token(self, row: Encoded) -> None:
        """Find out whether a row's tower pools its first token and nothing else; for towers that mask nothing."""
        layers = self.layers(row.tower)
        if len(layers) == 1 or not classtoken.is_known(layers[-1]):
            return
        inputs = Inputs(row.tower, self._placed(self.collate([row])))
        whole = self(inputs)
        with classtoken.blanked(layers[-1]):
            if not torch.equal(self(inputs), whole):
                return
        states = self._below(inputs, CLASS_TOKEN)
        found = self(Inputs(row.tower, inputs.tensors, CLASS_TOKEN, states))
        if torch.allclose(found, whole, atol=1e-4 + 4 * torch.finfo(self._dtype).eps):  # it attends as most do
            self._alone[row.tower] = states.shape[-1]
