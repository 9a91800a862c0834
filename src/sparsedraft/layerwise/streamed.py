"""A decoder model that reads its weights from its shards layer by layer, so that it is never in memory whole."""

from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from torch import nn
from transformers import AutoModelForCausalLM

from sparsedraft.base import allocator
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint, quantizers
from sparsedraft.models.decoder import linears_of, named_layers
from sparsedraft.models.shards import Shards


class Streamed:
    """The model of the checkpoint in `folder`: modules without memory, into which one layer at a time is loaded.

    Arithmetic is in `dtype` on `device`. Raises UserError for a model whose layers are not made of plain linears.
    """

    def __init__(self, folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        self.folder, self.dtype, self.device = folder, dtype, torch.device(device)
        self.shards = Shards(folder)
        config = checkpoint.read_config(folder)
        quantizers.check_plain(folder, config, self.shards, "pruning or dropping layers")
        with init_empty_weights(include_buffers=False):  # buffers such as rotary frequencies are computed, not stored
            self.model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False).eval()
        for name, buffer in self.model.named_buffers():
            set_module_tensor_to_device(self.model, name, self.device, value=buffer)
        self.prefix, layers = named_layers(self.model)
        self.layers: list[nn.Module] = list(layers)
        for index, layer in enumerate(self.layers):
            for name, linear in linears_of(layer, f"{self.prefix}.{index}").items():
                self._check(self.linear_name(index, name), linear)
        self._check_rest()

    def _check(self, name: str, linear: nn.Linear) -> None:
        """UserError unless the weight of a linear is stored as plain numbers of the right shape."""
        weight = f"{name}.weight"
        stored = self.shards.find(weight, self.model.base_model_prefix)
        if stored is None:
            raise UserError(
                f"model {self.folder} stores no tensor {weight}: its weights are packed (already quantised, or fused "
                "experts) or named otherwise, so it cannot be pruned; give the original checkpoint."
            )
        kind = self.shards.types[stored]
        if kind not in ("F64", "F32", "F16", "BF16"):
            raise UserError(
                f"{weight} of model {self.folder} is stored as {kind}: already quantised weights cannot be pruned; "
                "give the original checkpoint."
            )

    def _check_rest(self) -> None:
        """UserError unless everything is stored in the right shape, and all outside the layers is finite.

        Layers are checked when they are loaded; the head is never read.
        """
        tied = self.model.config.get_text_config().tie_word_embeddings
        head = self.model.get_output_embeddings()
        for prefix, module in self.model.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                full = f"{prefix}.{key}"
                if module is head and (tied or self._head_has_another_name(full, parameter)):
                    continue
                self._check_shape(full, parameter)
                if not full.startswith(f"{self.prefix}.") and not self.shards.finite(self.stored_name(full)):
                    raise UserError(f"{full} of model {self.folder} holds NaN or infinity: the checkpoint is damaged.")

    def _head_has_another_name(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether the head is stored under a name that transformers translates (GPT-NeoX: embed_out)."""
        if self.shards.find(name, self.model.base_model_prefix) is not None:
            return False
        known = {self.shards.find(full, self.model.base_model_prefix) for full, _ in self.model.named_parameters()}
        return any(self.shards.shapes[other] == tuple(parameter.shape) for other in self.shards.files.keys() - known)

    def _check_shape(self, name: str, parameter: nn.Parameter) -> None:
        shape = self.shards.shapes[self.stored_name(name)]
        if shape != tuple(parameter.shape):
            raise UserError(
                f"{name} of model {self.folder} has shape {list(shape)}, but its config says "
                f"{list(parameter.shape)}: config and weights do not belong together."
            )

    def __len__(self) -> int:
        return len(self.layers)

    def linear_name(self, index: int, name: str) -> str:
        """Full name of a linear of layer `index`."""
        return f"{self.prefix}.{index}.{name}"

    def stored_name(self, name: str) -> str:
        """The name of the model's tensor `name` in the shards; UserError if it is not there."""
        stored = self.shards.find(name, self.model.base_model_prefix)
        if stored is None:
            raise UserError(f"model {self.folder} lacks the tensor {name} that its config asks for.")
        return stored

    def linears(self) -> Iterator[tuple[int, str, nn.Linear]]:
        """(layer, name inside it, module) of every decoder linear, in order."""
        for index, layer in enumerate(self.layers):
            for name, linear in linears_of(layer).items():
                yield index, name, linear

    def _fill(self, module: nn.Module, prefix: str, recurse: bool = True, but: Container[int] = ()) -> None:
        """Give the module's parameters their stored values, except those whose id is in `but`."""
        for name, parameter in [*module.named_parameters(recurse=recurse)]:
            if id(parameter) in but:
                continue
            full = f"{prefix}.{name}"
            tensor, finite = self.shards.converted(self.stored_name(full), self.dtype)
            if not finite:
                raise UserError(
                    f"{full} of model {self.folder} holds NaN or infinity as {str(self.dtype).removeprefix('torch.')}: "
                    "the checkpoint is damaged, or its weights are too large for --dtype."
                )
            set_module_tensor_to_device(module, name, self.device, value=tensor)

    def load(self, index: int) -> nn.Module:
        """Layer `index` with its weights."""
        self._fill(self.layers[index], f"{self.prefix}.{index}")
        return self.layers[index]

    def unload(self, index: int) -> None:
        """Free the memory of layer `index`."""
        _empty(self.layers[index])
        allocator.trim()

    @contextmanager
    def filled(self, module: nn.Module, name: str) -> Iterator[None]:
        """While this lasts, the `module` of this name, which lies outside the decoder layers, has its weights."""
        try:
            self._fill(module, name)
            yield
        finally:
            _empty(module)

    @contextmanager
    def front(self) -> Iterator[None]:
        """While this lasts, everything outside the decoder layers has its weights, except the head."""
        inside = {id(p) for layer in self.layers for p in layer.parameters()}
        head = self.model.get_output_embeddings()
        outside = [
            (prefix, module)
            for prefix, module in self.model.named_modules()
            if module is not head and any(id(p) not in inside for p in module.parameters(recurse=False))
        ]
        try:
            for prefix, module in outside:
                self._fill(module, prefix, recurse=False, but=inside)
            yield
        finally:
            for _, module in outside:
                _empty(module, recurse=False)
            allocator.trim()


def _empty(module: nn.Module, recurse: bool = True) -> None:
    for name, _ in [*module.named_parameters(recurse=recurse)]:
        set_module_tensor_to_device(module, name, "meta")
