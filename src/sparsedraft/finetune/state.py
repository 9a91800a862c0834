"""What must survive a kill: weights, masks, AdamW's moments, the step, and the log so far. Safetensors, no pickle.

Files hold whole tensors, whatever processes they were gathered from, so a run may go on with another number of them.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from sparsedraft.artifact import write_atomic
from sparsedraft.finetune.adamw import MaskedAdamW, pack, unpack
from sparsedraft.finetune.sharding import local, part, whole

STATE = ".state.safetensors"


class State:
    """The state of a training run in `folder`. Every process calls each method; only the one that `writes` writes.

    The file holds weight.NAME, keep.NAME (bool) where NAME is masked, and first.NAME and second.NAME: the moments, of a
    masked parameter only those of its surviving weights. Step and log are in its metadata: one file, so that they
    cannot disagree. `.best-STEP.safetensors` holds weights and masks of the best validation, with early stopping.
    """

    def __init__(self, folder: Path, model: PreTrainedModel, optimizer: MaskedAdamW, *, writes: bool = True) -> None:
        self.folder, self.writes, self.optimizer = folder, writes, optimizer
        # taken once: after a forward pass alone FSDP2 leaves some modules with their gathered parameters
        self.named = dict(model.named_parameters())
        self.log: list[dict[str, float]] = []

    def save(self, step: int) -> None:
        """Save the state after `step`, and drop the best weights that an older one referred to."""
        tensors = self._weights()
        for name, parameter in self.named.items():
            keep = self.optimizer.keep.get(parameter)
            if moments := self.optimizer.state.get(parameter):
                kept = None if keep is None else whole(keep.byte(), parameter).bool()
                for ours, theirs in (("first", "exp_avg"), ("second", "exp_avg_sq")):
                    self._add(tensors, f"{ours}.{name}", _gathered(moments[theirs], keep, kept, parameter))
        if self.writes:
            self._write(self.folder / STATE, tensors, {"step": str(step), "log": json.dumps(self.log)})
            for file in self.folder.glob(".best-*"):
                if file != self._best_file():
                    file.unlink()

    def restore(self) -> int:
        """Load what was saved, if anything, masks included; return the steps that are done."""
        if not (self.folder / STATE).exists():
            return 0
        with safe_open(self.folder / STATE, "pt") as file:
            meta, stored = file.metadata(), set(file.keys())
            step, self.log = int(meta["step"]), json.loads(meta["log"])
            for name, parameter in self.named.items():
                _load(file, name, parameter)
                kept = file.get_tensor(f"keep.{name}") if f"keep.{name}" in stored else None
                keep = None if kept is None else part(kept, parameter)
                if keep is not None:
                    self.optimizer.hold(parameter, keep)
                if f"first.{name}" in stored:
                    self.optimizer.state[parameter] = {
                        "step": torch.tensor(float(step), device=local(parameter).device),
                        **{
                            theirs: pack(part(unpack(file.get_tensor(f"{ours}.{name}"), kept), parameter), keep)
                            for ours, theirs in (("first", "exp_avg"), ("second", "exp_avg_sq"))
                        },
                    }
        return step

    @property
    def best_step(self) -> int:
        """The step of the validation with the highest α, the earliest of equals."""
        checks = [entry for entry in self.log if "val_alpha" in entry]
        return int(max(checks, key=lambda entry: entry["val_alpha"])["step"])

    def waited(self) -> int:
        """How many validations came after the best."""
        best = self.best_step
        return sum("val_alpha" in entry and entry["step"] > best for entry in self.log)

    def keep_best(self) -> None:
        """Save the weights, if the validation just logged is the best so far."""
        if self.log[-1]["step"] == self.best_step:
            tensors = self._weights()
            if self.writes:
                self._write(self._best_file(), tensors, {"step": str(self.best_step)})

    def restore_best(self) -> None:
        """Put the weights of the best validation into the model, and back its mask, which may have moved since."""
        with safe_open(self._best_file(), "pt") as file:
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

    def _best_file(self) -> Path:
        return self.folder / f".best-{self.best_step}.safetensors"

    def _weights(self) -> dict[str, Tensor]:
        """weight.NAME and keep.NAME of every parameter."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.named.items():
            self._add(tensors, f"weight.{name}", whole(local(parameter.detach()), parameter))
            if (keep := self.optimizer.keep.get(parameter)) is not None:
                self._add(tensors, f"keep.{name}", whole(keep.byte(), parameter).bool())
        return tensors

    def _add(self, tensors: dict[str, Tensor], name: str, tensor: Tensor) -> None:
        if self.writes:  # the others have only helped to gather it
            tensors[name] = tensor.cpu().contiguous()

    @staticmethod
    def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        with write_atomic(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)


def saved_step(folder: Path) -> int:
    """The step after which the state in `folder` was saved; 0 where there is none."""
    if not (folder / STATE).exists():
        return 0
    with safe_open(folder / STATE, "pt") as file:
        return int(file.metadata()["step"])


def remove(folder: Path) -> None:
    """Delete the state in `folder`, best weights too."""
    for file in (folder / STATE, *folder.glob(".best-*")):
        file.unlink(missing_ok=True)


def load_weights(folder: Path, model: PreTrainedModel) -> None:
    """Put the weights of the state in `folder` into `model`."""
    with safe_open(folder / STATE, "pt") as file:
        for name, parameter in model.named_parameters():
            _load(file, name, parameter)


def _gathered(moments: Tensor, keep: Tensor | None, kept: Tensor | None, like: Tensor) -> Tensor:
    """The moments of the whole of `like`, packed by its whole mask `kept`, from a part packed by its part `keep`."""
    if local(like) is like:  # not sharded
        return moments
    return pack(whole(unpack(moments, keep), like), kept)


@torch.no_grad()
def _load(file: safe_open, name: str, parameter: Tensor) -> None:
    local(parameter).copy_(part(file.get_tensor(f"weight.{name}"), parameter))
