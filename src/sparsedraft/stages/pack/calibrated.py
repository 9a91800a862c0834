"""Rounding a checkpoint to int4 on calibration text, a decoder layer at a time: GPTQ, zeros held.

Each layer, and the head after them, sees the inputs that the rounded layers before it put out. Its codes are stored as
soon as they are known, so that an interrupted run goes on with the next layer. Memory is as of `prune`.
"""

from collections.abc import Callable, Container
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsedraft.base.console import track
from sparsedraft.base.errors import UserError
from sparsedraft.base.files import write_atomic
from sparsedraft.layerwise import sequential
from sparsedraft.layerwise.sparsegpt import Goal, Hessian, prune_and_round, relative_error
from sparsedraft.layerwise.streamed import Streamed
from sparsedraft.maths.quantization import GROUP, Codes
from sparsedraft.models.decoder import final_norm, linears_of

HEAD_ROWS = 8192  # rows of a head that are rounded at once: they do not depend on each other
GroupOf = Callable[[str, Tensor], int]  # (name of a linear, its weight) -> inputs that share a scale


class CalibratedCodes:
    """The int4 codes of all decoder linears of `model`, rounded on the token ids `ids` [n, length], kept in `work`.

    `group_of` says how many inputs share a scale, None that the linears are rounded already and stay as they are; of
    the linears in `sparse` zeros stay zero. `head` [vocabulary, hidden], where given, is rounded, too. The constructor
    does the work, or what an interrupted one has left of it. UserError as for pruning.
    """

    def __init__(
        self,
        model: Streamed,
        ids: Tensor,
        work: Path,
        group_of: GroupOf | None,
        sparse: Container[str] = (),
        head: Tensor | None = None,
    ) -> None:
        self.model, self.folder, self.group_of, self.sparse = model, work / ".codes", group_of, sparse
        self.places = {model.linear_name(index, name): (index, name) for index, name, _ in model.linears()}
        self.folder.mkdir(exist_ok=True)
        files = [self._file(index) for index in range(len(model))] if group_of else []
        files += [] if head is None else [self._head_file]
        if all(file.exists() for file in files):
            return
        self.activations = sequential.Activations(model, ids, work / ".hidden")
        with track("rounding to int4" if group_of else "reading the text", len(model), "layers") as tracker:
            tracker.advance(self.activations.start)
            for index, layer in sequential.walk(model, self.activations):
                if group_of and not self._file(index).exists():
                    self._round(layer, index, group_of)
                if group_of:
                    self._put(layer, index)
                tracker.advance()
        if head is not None and not self._head_file.exists():
            self._round_head(head)
        self.activations.close()

    def head(self) -> Codes | None:
        """The codes of the head; None where it was not given."""
        if not self._head_file.exists():
            return None
        tensors = load_file(self._head_file)
        return Codes(tensors["codes"], tensors["scale"], GROUP)

    def of(self, linear: str) -> Codes | None:
        """The codes of one linear by its full name; None where it was rounded before."""
        if self.group_of is None:
            return None
        index, name = self.places[linear]
        with safe_open(self._file(index), "pt") as file:
            group = int(file.metadata()[name])
            return Codes(file.get_tensor(f"{name}.codes"), file.get_tensor(f"{name}.scale"), group)

    def mean_relative_error(self) -> float | None:
        """Mean over the linears of ‖(W-Ŵ)X‖² / ‖WX‖²; None where they were rounded before."""
        errors = []
        if self.group_of is None:
            return None
        for index in range(len(self.model)):
            with safe_open(self._file(index), "pt") as file:
                notes = file.metadata()
            errors += [float(notes[f"error of {name}"]) for name in linears_of(self.model.layers[index])]
        return sum(errors) / len(errors)

    @property
    def _head_file(self) -> Path:
        return self.folder / "head.safetensors"

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:05}.safetensors"

    @torch.no_grad()
    def _round(self, layer: nn.Module, index: int, group_of: GroupOf) -> None:
        """Round the linears of a layer, and store their codes."""
        linears = linears_of(layer)
        hessians = sequential.hessians(layer, index, self.activations)
        tensors, notes = {}, {}
        for name in sequential.by_input(linears, hessians):
            full, weight, hessian = self.model.linear_name(index, name), linears[name].weight.detach(), hessians[name]
            zeros = weight == 0 if full in self.sparse else None
            try:
                codes, _ = prune_and_round(weight, hessian, Goal(group=group_of(full, weight)), zeros)
            except UserError as error:
                raise UserError(f"layer {index}, {name}: {error}") from None
            tensors[f"{name}.codes"], tensors[f"{name}.scale"] = codes.codes.cpu(), codes.scale.cpu()
            notes[name] = str(codes.group)
            notes[f"error of {name}"] = repr(relative_error(weight, codes.weight(weight.dtype), hessian.H))
        with write_atomic(self._file(index)) as temporary:
            save_file(tensors, temporary, metadata=notes)

    @torch.no_grad()
    def _round_head(self, weight: Tensor) -> None:
        """Round the head for the states that reach it."""
        name, norm = final_norm(self.model.model)
        hessian = Hessian(weight.shape[1], self.model.device)
        with self.model.filled(norm, name):
            for hidden in self.activations.batches(len(self.model)):
                hessian.add(norm(hidden))
        if not hessian.finite:
            raise UserError("the states that reach the head hold NaN or infinity: try float32, or other text.")
        hessian.finish()
        parts = []
        with track("rounding the head to int4", len(weight), "rows") as tracker:
            for rows in weight.split(HEAD_ROWS):
                codes, _ = prune_and_round(rows.to(self.model.device).float(), hessian, Goal(group=GROUP))
                parts.append((codes.codes.cpu(), codes.scale.cpu()))
                tracker.advance(len(rows))
        tensors = {"codes": torch.cat([codes for codes, _ in parts]), "scale": torch.cat([scale for _, scale in parts])}
        with write_atomic(self._head_file) as temporary:
            save_file(tensors, temporary)

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
