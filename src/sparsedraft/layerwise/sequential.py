"""Walk a model layer by layer with the activations of the already pruned prefix.

It works for any decoder whose layers read only the layer before and what is the same for every text (position
embeddings, masks, which differ by layer in some families): `arguments` records and proves that. Hidden states lie in
files, one for the layer that runs and one for the next, so that calibration may be larger than memory and an
interrupted walk goes on at the layer where it stopped. They are plain files and not mappings: the page cache holds what
memory allows, a full disk is an error and not a signal, and resident memory is one batch.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsedraft.base.console import track
from sparsedraft.base.errors import UserError
from sparsedraft.base.files import write_atomic
from sparsedraft.base.jsonfiles import read_json
from sparsedraft.layerwise import arguments
from sparsedraft.layerwise.sparsegpt import Hessian
from sparsedraft.layerwise.streamed import Streamed
from sparsedraft.models.decoder import linears_of

BATCH = 2048  # tokens that go through a layer at once


class _Reached(Exception):
    """Raised to leave the model's forward at its first layer."""


class Activations:
    """Hidden states [n, L, hidden] before the layer that runs, in a file of `folder`, and all layers' other arguments.

    The constructor runs the model up to its first layer, unless `folder` holds the states of an interrupted walk.
    `start` is the layer to go on with. `rows` sequences go through a layer at once.
    """

    def __init__(self, model: Streamed, ids: Tensor, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.count, self.length = ids.shape
        self.rows = max(1, BATCH // self.length)  # sequences in a batch
        folder.mkdir(exist_ok=True)
        with model.front():
            self.arguments, self.hidden_size = arguments.record(model, ids)  # of a batch of one, which fits any
            layers = sorted(int(file.suffix[1:]) for file in folder.glob("hidden.[0-9]*"))
            if not layers:
                self._write(0, self._first(ids))
        self.start = layers[-1] if layers else 0
        for index in layers[:-1]:  # a kill between two steps left more than one
            self._file(index).unlink()
        self._try_batches()

    def _file(self, index: int) -> Path:
        return self.folder / f"hidden.{index:05}"

    @torch.no_grad()
    def _try_batches(self) -> None:
        """Set `rows` to 1 where the arguments of a batch of one fit no larger batch (BLOOM's alibi)."""
        if min(self.rows, self.count) == 1 or self.start >= len(self.model):
            return
        try:
            next(self.outputs(self.model.load(self.start), self.start))
        except (RuntimeError, ValueError):
            self.rows = 1
        self.model.unload(self.start)

    @torch.no_grad()
    def _first(self, ids: Tensor) -> Iterator[Tensor]:
        """What reaches the first layer, batch by batch."""
        seen: list[Tensor] = []

        def before(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            seen.append(arguments.hidden_of(args, kwargs)[0])
            raise _Reached

        hook = self.model.layers[0].register_forward_pre_hook(before, with_kwargs=True)
        try:
            for batch in ids.split(self.rows):
                with contextlib.suppress(_Reached):
                    self.model.model(input_ids=batch.to(self.model.device), use_cache=False)
                yield seen.pop()
        finally:
            hook.remove()

    def _write(self, index: int, batches: Iterator[Tensor]) -> None:
        with write_atomic(self._file(index)) as temporary, open(temporary, "wb") as file:
            for batch in batches:
                file.write(
                    batch.cpu().contiguous().view(torch.uint8).numpy().data
                )  # (tofile hides a full disk's errno)

    def batches(self, index: int) -> Iterator[Tensor]:
        """The hidden states before layer `index`, batch by batch, [rows, L, hidden]."""
        width = self.length * self.hidden_size * torch.empty(0, dtype=self.model.dtype).element_size()
        with open(self._file(index), "rb") as file:
            for start in range(0, self.count, self.rows):
                rows = min(self.rows, self.count - start)
                raw = np.fromfile(file, np.uint8, rows * width)
                batch = torch.from_numpy(raw).view(self.model.dtype).view(rows, self.length, self.hidden_size)
                yield batch.to(self.model.device)

    def outputs(self, layer: nn.Module, index: int) -> Iterator[Tensor]:
        """The layer's outputs, batch by batch."""
        for hidden in self.batches(index):
            args, kwargs = arguments.fresh(self.arguments[index])
            yield arguments.output_of(layer(hidden, *args, **kwargs))

    @torch.no_grad()
    def advance(self, layer: nn.Module, index: int) -> None:
        """Keep the layer's outputs as the inputs of the next, and drop its inputs."""
        self._write(index + 1, self.outputs(layer, index))
        self._file(index).unlink()

    def close(self) -> None:
        """Delete the states of a walk that is over."""
        for file in self.folder.glob("hidden.[0-9]*"):
            file.unlink()


@torch.no_grad()
def hessians(layer: nn.Module, index: int, activations: Activations) -> dict[str, Hessian]:
    """The Hessian of every linear of the layer, by name; linears that read the same input share one.

    Raises UserError, naming layer, linear and sequence, where an activation is NaN or infinite.
    """
    linears = linears_of(layer)
    shared: dict[str, Hessian] = {}
    last: list[tuple[Tensor, Hessian]] = []  # inputs of this batch, and where they were counted
    done = 0  # sequences of the batches before

    def count(name: str) -> Callable[[nn.Module, tuple], None]:
        def hook(module: nn.Module, args: tuple) -> None:
            x = args[0]
            for tensor, hessian in last:
                if tensor is x:
                    shared[name] = hessian
                    return
            hessian = shared.setdefault(name, Hessian(x.shape[-1], x.device))
            hessian.add(x)
            if not hessian.finite:
                rows = torch.isfinite(x).flatten(1).all(1) if x.dim() == 3 else torch.ones(1, dtype=torch.bool)
                where = "" if bool(rows.all()) else f" in calibration sequence {done + int((~rows).nonzero()[0])}"
                raise UserError(
                    f"layer {index}, {name}: the calibration activations hold NaN or infinity{where}; "
                    f"try {'' if x.dtype == torch.float32 else 'float32, or '}other text."
                )
            last.append((x, hessian))

        return hook

    hooks = [linear.register_forward_pre_hook(count(name)) for name, linear in linears.items()]
    try:
        for out in activations.outputs(layer, index):
            last.clear()
            done += len(out)
    finally:
        for hook in hooks:
            hook.remove()
    for hessian in {id(h): h for h in shared.values()}.values():
        hessian.finish()
    return shared


def by_input(linears: Iterable[str], hessians: dict[str, Hessian]) -> Iterator[str]:
    """The names of the linears, those of one input in a row, so that one factor is in memory at a time."""
    waiting = list(linears)
    while waiting:
        hessian = hessians[waiting[0]]
        same = [name for name in waiting if hessians[name] is hessian]
        yield from same
        waiting = [name for name in waiting if name not in same]
        hessian.release()


def walk(model: Streamed, activations: Activations) -> Iterator[tuple[int, nn.Module]]:
    """Each decoder layer in memory, in turn; the caller may change its weights before the next is asked for."""
    for index in range(activations.start, len(model)):
        layer = model.load(index)
        yield index, layer
        activations.advance(layer, index)
        model.unload(index)


def measure(
    model: Streamed, ids: Tensor, folder: Path, of_layer: Callable[[nn.Module, int, Activations], Any]
) -> list[Any]:
    """`of_layer` of every layer of the unchanged model, kept as JSON in `folder` so that a killed walk goes on."""
    file = folder / "measured.json"
    try:
        measured = read_json(file) if file.exists() else []
        if not isinstance(measured, list):
            raise UserError(f"{file} holds no list.")
    except UserError:  # the walk starts from the beginning, so its states go, too
        measured = []
        for state in folder.glob("hidden.[0-9]*"):
            state.unlink()
    if len(measured) == len(model):
        return measured
    activations = Activations(model, ids, folder)
    with track("measuring every layer for the allocation", len(model), "layers") as tracker:
        tracker.advance(activations.start)
        for index, layer in walk(model, activations):
            if index == len(measured):
                measured.append(of_layer(layer, index, activations))
                with write_atomic(file) as temporary:
                    temporary.write_text(json.dumps(measured))
            tracker.advance()
    activations.close()
    return measured
