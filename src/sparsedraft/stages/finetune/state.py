"""What must survive a kill: weights, masks, AdamW's moments, the step, and the log so far. Safetensors, no pickle.

Files hold whole tensors, however many processes they were gathered from, so a run may go on with another number of
processes. The state before the last one stays, too: if the last cannot be read, training goes on from that one.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from sparsedraft.base.console import console
from sparsedraft.base.files import write_atomic
from sparsedraft.stages.finetune.adamw import MaskedAdamW, pack, unpack
from sparsedraft.stages.finetune.sharding import local, part, whole

STATE, BEFORE = ".state.safetensors", ".state-before.safetensors"  # the last, and the one before it
MOMENTS = {"first": "exp_avg", "second": "exp_avg_sq"}  # in the file, and in torch
UNREADABLE = (SafetensorError, OSError, ValueError, LookupError, TypeError, RecursionError)
Log = list[dict[str, Any]]


@dataclass(frozen=True)
class Saved:
    """A file of a state that can be read."""

    file: Path
    step: int
    log: Log


def best_of(log: Log) -> int:
    """The step of the validation with the highest α, the earliest of equals."""
    checks = [entry for entry in log if "val_alpha" in entry]
    return int(max(checks, key=lambda entry: entry["val_alpha"])["step"])


def _best_file(folder: Path, log: Log) -> Path:
    return folder / f".best-{best_of(log)}.safetensors"


def _opened(file: Path, needed: Mapping[str, Any]) -> Saved | None:
    """The state in `file`, if it is whole: it has a weight of the right shape for each of the parameters `needed`."""
    try:
        with safe_open(file, "pt") as opened:  # checks the header against the file's size
            meta = opened.metadata()
            for name, parameter in needed.items():
                if opened.get_slice(f"weight.{name}").get_shape() != [*parameter.shape]:
                    return None
            log = json.loads(meta["log"])
            step = int(meta["step"])
            best_of(log)
            return Saved(file, step, log) if int(log[-1]["step"]) == step else None
    except UNREADABLE:
        return None


def _candidates(folder: Path) -> Iterator[Path]:
    yield from (folder / name for name in (STATE, BEFORE) if (folder / name).exists())


def last_saved(folder: Path, model: PreTrainedModel, keeps_best: bool = False) -> Saved | None:
    """The last state in `folder` that can be read and fits `model`; None where there is none.

    With `keeps_best` the weights of its best validation must be there, too.
    """
    needed = dict(model.named_parameters())
    for file in _candidates(folder):
        saved = _opened(file, needed)
        if saved is not None and (not keeps_best or _whole(_best_file(folder, saved.log), needed)):
            return saved
    return None


def _whole(file: Path, needed: Mapping[str, Any]) -> bool:
    try:
        with safe_open(file, "pt") as opened:
            return {f"weight.{name}" for name in needed} <= set(opened.keys())
    except UNREADABLE:
        return False


class State:
    """The state of a training run in `folder`. Every process calls each method; only the one that `writes` writes.

    The file holds weight.NAME, keep.NAME (bool) where NAME is masked, and first.NAME and second.NAME: the moments, of a
    masked parameter only those of its surviving weights. Step and log are in its metadata: one file, so that they
    cannot disagree. `.best-STEP.safetensors` holds weights and masks of the best validation, if it `keeps_best`.
    """

    def __init__(
        self,
        folder: Path,
        model: PreTrainedModel,
        optimizer: MaskedAdamW,
        *,
        writes: bool = True,
        keeps_best: bool = False,
    ) -> None:
        self.folder, self.writes, self.optimizer, self.keeps_best = folder, writes, optimizer, keeps_best
        # named once, here: after a forward pass alone FSDP2 leaves some modules with their gathered parameters
        self.model, self.named = model, dict(model.named_parameters())
        self.log: Log = []

    def save(self, step: int) -> None:
        """Save the state after `step` and keep the one before it; delete best weights that neither refers to."""
        tensors = self._weights()
        for name, parameter in self.named.items():
            keep = self.optimizer.keep.get(parameter)
            if moments := self.optimizer.state.get(parameter):
                whole_keep = None if keep is None else whole(keep.byte(), parameter).bool()
                for key, moment in MOMENTS.items():
                    self._add(tensors, f"{key}.{name}", _gathered(moments[moment], keep, whole_keep, parameter))
        if self.writes:
            last, before = self.folder / STATE, self.folder / BEFORE
            earlier = _opened(last, self.named)
            if earlier is not None:  # it is whole, so the one before it may go: one state can be read at any time
                os.replace(last, before)
            else:
                earlier = _opened(before, self.named)
            self._write(last, tensors, {"step": str(step), "log": json.dumps(self.log)})
            needed = {_best_file(self.folder, log) for log in (self.log, earlier.log if earlier else self.log)}
            for file in self.folder.glob(".best-*"):
                if file not in needed:
                    file.unlink()

    def restore(self) -> int:
        """Load the last state that can be read, if any, masks included; return the steps that are done."""
        saved = last_saved(self.folder, self.model, self.keeps_best)
        first = next(_candidates(self.folder), None)
        if first is not None and (saved is None or saved.file != first):
            where = f"goes on from step {saved.step}, saved before it" if saved else "starts afresh"
            console.print(f"{first} cannot be read: training {where}", soft_wrap=True)
        if saved is None:
            return 0
        step, self.log = saved.step, saved.log
        with safe_open(saved.file, "pt") as file:
            stored = set(file.keys())
            for name, parameter in self.named.items():
                _load(file, name, parameter)
                whole_keep = file.get_tensor(f"keep.{name}") if f"keep.{name}" in stored else None
                keep = None if whole_keep is None else part(whole_keep, parameter)
                if keep is not None:
                    self.optimizer.hold(parameter, keep)
                if f"first.{name}" in stored:
                    self.optimizer.state[parameter] = {
                        "step": torch.tensor(float(step), device=local(parameter).device),
                        **{
                            moment: pack(part(unpack(file.get_tensor(f"{key}.{name}"), whole_keep), parameter), keep)
                            for key, moment in MOMENTS.items()
                        },
                    }
        return step

    @property
    def best_step(self) -> int:
        """`best_of` the log so far."""
        return best_of(self.log)

    def waited(self) -> int:
        """How many validations came after the best."""
        best = self.best_step
        return sum("val_alpha" in entry and entry["step"] > best for entry in self.log)

    def keep_best(self) -> None:
        """Save the weights, if the validation just logged is the best so far."""
        if self.log[-1]["step"] == self.best_step:
            tensors = self._weights()
            if self.writes:
                self._write(_best_file(self.folder, self.log), tensors, {"step": str(self.best_step)})

    def restore_best(self) -> None:
        """Put weights and mask of the best validation back into the model; the mask may have moved since."""
        with safe_open(_best_file(self.folder, self.log), "pt") as file:
            stored = set(file.keys())
            for name, parameter in self.named.items():
                _load(file, name, parameter)
                if f"keep.{name}" in stored:
                    self.optimizer.hold(parameter, part(file.get_tensor(f"keep.{name}"), parameter))

    def write_log(self) -> None:
        """Write log.jsonl: one line a step, one a validation."""
        if self.writes:
            with write_atomic(self.folder / "log.jsonl") as temporary:
                temporary.write_text("".join(json.dumps(entry) + "\n" for entry in self.log))

    def _weights(self) -> dict[str, Tensor]:
        """weight.NAME and keep.NAME of every parameter."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.named.items():
            self._add(tensors, f"weight.{name}", whole(local(parameter.detach()), parameter))
            if (keep := self.optimizer.keep.get(parameter)) is not None:
                self._add(tensors, f"keep.{name}", whole(keep.byte(), parameter).bool())
        return tensors

    def _add(self, tensors: dict[str, Tensor], name: str, tensor: Tensor) -> None:
        if self.writes:  # the other processes only helped to gather it
            tensors[name] = tensor.cpu().contiguous()

    @staticmethod
    def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        with write_atomic(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)


def remove(folder: Path) -> None:
    """Delete the states in `folder`, best weights too."""
    for file in (folder / STATE, folder / BEFORE, *folder.glob(".best-*")):
        file.unlink(missing_ok=True)


def load_weights(saved: Saved, model: PreTrainedModel) -> None:
    """Put the weights of the state into `model`."""
    with safe_open(saved.file, "pt") as file:
        for name, parameter in model.named_parameters():
            _load(file, name, parameter)


def _gathered(moments: Tensor, keep: Tensor | None, whole_keep: Tensor | None, like: Tensor) -> Tensor:
    """The moments of the whole of `like`, packed by its whole mask, from the part that is packed by its part `keep`."""
    if local(like) is like:  # not sharded
        return moments
    return pack(whole(unpack(moments, keep), like), whole_keep)


@torch.no_grad()
def _load(file: safe_open, name: str, parameter: Tensor) -> None:
    local(parameter).copy_(part(file.get_tensor(f"weight.{name}"), parameter))
