"""Rounding a checkpoint to int4 on calibration text, a decoder layer at a time: GPTQ, zeros held.

Each layer sees the inputs that the rounded layers before it put out. Its codes are stored as soon as they are known, so
that an interrupted run goes on with the next layer. Memory is as of `prune`.
"""

from collections.abc import Callable, Container, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsedraft.base.console import track
from sparsedraft.base.errors import UserError
from sparsedraft.base.files import write_atomic
from sparsedraft.layerwise import sequential
from sparsedraft.layerwise.sparsegpt import Goal, prune_and_round, relative_error
from sparsedraft.layerwise.streamed import Streamed
from sparsedraft.maths.quantization import Codes
from sparsedraft.models.decoder import linears_of

GroupOf = Callable[[str, Tensor], int]  # (name of a linear, its weight) -> inputs that share a scale


class CalibratedCodes:
    """The int4 codes of all decoder linears of `model`, rounded on the token ids `ids` [n, length], kept in `work`.

    `group_of` says how many inputs share a scale; of the linears in `sparse` zeros stay zero. The constructor does the
    work, or what an interrupted one has left of it. UserError as for pruning.
    """

    def __init__(
        self, model: Streamed, ids: Tensor, work: Path, group_of: GroupOf, sparse: Container[str] = ()
    ) -> None:
        self.model, self.folder, self.group_of, self.sparse = model, work / ".codes", group_of, sparse
        self.places = {model.linear_name(index, name): (index, name) for index, name, _ in model.linears()}
        self.folder.mkdir(exist_ok=True)
        activations = sequential.Activations(model, ids, work / ".hidden")
        with track("rounding to int4", len(model), "layers") as tracker:
            tracker.advance(activations.start)
            for index, layer in sequential.walk(model, activations):
                if not self._file(index).exists():
                    self._round(layer, index, activations)
                self._put(layer, index)
                tracker.advance()
        activations.close()

    def __iter__(self) -> Iterator[tuple[str, Codes]]:
        """(linear, its codes), in the order of the layers; one layer in memory at a time."""
        for index in range(len(self.model)):
            for name, codes in self._read(index).items():
                yield self.model.linear_name(index, name), codes

    def of(self, linear: str) -> Codes:
        """The codes of one linear by its full name."""
        index, name = self.places[linear]
        with safe_open(self._file(index), "pt") as file:
            group = int(file.metadata()[name])
            return Codes(file.get_tensor(f"{name}.codes"), file.get_tensor(f"{name}.scale"), group)

    def mean_relative_error(self) -> float:
        """Mean over the linears of ‖(W-Ŵ)X‖² / ‖WX‖²."""
        errors = []
        for index in range(len(self.model)):
            with safe_open(self._file(index), "pt") as file:
                notes = file.metadata()
            errors += [float(notes[f"error of {name}"]) for name in linears_of(self.model.layers[index])]
        return sum(errors) / len(errors)

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:05}.safetensors"

    @torch.no_grad()
    def _round(self, layer: nn.Module, index: int, activations: sequential.Activations) -> None:
        """Round the linears of a layer, and store their codes."""
        linears = linears_of(layer)
        hessians = sequential.hessians(layer, index, activations)
        tensors, notes = {}, {}
        for name in sequential.by_input(linears, hessians):
            full, weight, hessian = self.model.linear_name(index, name), linears[name].weight.detach(), hessians[name]
            zeros = weight == 0 if full in self.sparse else None
            try:
                codes, _ = prune_and_round(weight, hessian, Goal(group=self.group_of(full, weight)), zeros)
            except UserError as error:
                raise UserError(f"layer {index}, {name}: {error}") from None
            tensors[f"{name}.codes"], tensors[f"{name}.scale"] = codes.codes.cpu(), codes.scale.cpu()
            notes[name] = str(codes.group)
            notes[f"error of {name}"] = repr(relative_error(weight, codes.weight(weight.dtype), hessian.H))
        with write_atomic(self._file(index)) as temporary:
            save_file(tensors, temporary, metadata=notes)

    def _read(self, index: int) -> dict[str, Codes]:
        tensors = load_file(self._file(index))
        with safe_open(self._file(index), "pt") as file:
            notes = file.metadata()
        names = linears_of(self.model.layers[index])
        return {n: Codes(tensors[f"{n}.codes"], tensors[f"{n}.scale"], int(notes[n])) for n in names}

    @torch.no_grad()
    def _put(self, layer: nn.Module, index: int) -> None:
        """Give the layer the rounded weights: the next layers see what the packed model will do."""
        linears = linears_of(layer)
        for name, codes in self._read(index).items():
            linears[name].weight.copy_(codes.weight())
