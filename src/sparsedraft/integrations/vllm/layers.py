"""How vLLM runs packed linears, embeddings and heads.

vLLM builds a layer, then loads its weights, then calls process_weights_after_loading, in which the packed matrices are
read from their folder and laid out for this CPU. Until then a layer holds nothing, and afterwards the number by which
the operator finds its matrices.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from vllm.model_executor.layers.linear import LinearMethodBase
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase

from sparsedraft.base.errors import UserError
from sparsedraft.integrations.vllm.folder import HEAD, PackedFolder
from sparsedraft.integrations.vllm.multiply import keep, multiply
from sparsedraft.native.layout import lay_out, lay_out_nibbles
from sparsedraft.native.nibbles import CHUNK, unpack_nibbles
from sparsedraft.native.packed_format import nonzero_of_dense, unpack_matrix
from sparsedraft.native.stored_matrix import StoredMatrix


class PackedLinearMethod(LinearMethodBase):
    """A linear of vLLM, made of the packed matrices `names`, one below the other."""

    def __init__(self, folder: PackedFolder, names: list[str]) -> None:
        self.folder, self.names = folder, names

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        *sizes: Any,
        **attributes: Any,
    ) -> None:
        """Check that the matrices fit the layer; UserError where they do not."""
        if len(output_partition_sizes) != len(self.names):
            raise UserError(
                f"packed folder {self.folder.folder} has {', '.join(self.names)} where vLLM's layer has "
                f"{len(output_partition_sizes)} parts: serve the checkpoint that it was packed from."
            )
        for name, rows in zip(self.names, output_partition_sizes, strict=True):
            self.folder.entry(name, rows, input_size_per_partition)
        layer.rows = sum(output_partition_sizes)

    def process_weights_after_loading(self, layer: Any) -> None:
        self.folder.check_complete()
        layer.register_buffer("matrices", keep([laid_out(self.folder, name) for name in self.names]), persistent=False)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        y = multiply(x, layer.matrices, layer.rows)
        return y if bias is None else y + bias


class PackedEmbeddingMethod(QuantizeMethodBase):
    """An embedding whose rows are dequantised as they are looked up; those of GGUF's blocks once, when it is loaded."""

    def __init__(self, folder: PackedFolder, name: str) -> None:
        self.folder, self.name = folder, name
        self.entry = folder.entries[name]

    def create_weights(self, layer: Any, columns: int, rows: list[int], *sizes: Any, **more: Any) -> None:
        """Check that the matrix fits the layer; UserError where it does not."""
        self.folder.entry(self.name, layer.org_vocab_size, columns)
        layer.dtype = more["params_dtype"]

    def process_weights_after_loading(self, layer: Any) -> None:
        self.folder.check_complete()
        _, tensors = self.folder.reader.table(self.name)
        with naming(self.folder):
            nonzero_of_dense(self.name, self.entry, tensors)  # which checks them
        if self.entry.blocks:
            parts = tensors["values"].split(CHUNK)
            whole = [StoredMatrix(part, blocks=self.entry.blocks).weight(layer.dtype) for part in parts]
            tensors = {"values": torch.cat(whole)}
        for part in ("values", "scale"):
            layer.register_buffer(part, tensors.get(part), persistent=False)

    def embedding(self, layer: Any, ids: Tensor) -> Tensor:
        """Rows [..., columns] in the model's dtype."""
        values = F.embedding(ids, layer.values)
        if layer.scale is None:
            return values.to(layer.dtype)
        scale = F.embedding(ids, layer.scale.view(self.entry.rows, -1)).float()
        if self.entry.group:
            values = unpack_nibbles(values, self.entry.columns)
            scale = scale.repeat_interleave(self.entry.group, dim=-1)[..., : self.entry.columns]
        return (values * scale).to(layer.dtype)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        raise NotImplementedError(f"{self.name} is an embedding, and vLLM asks for its logits")


class PackedHeadMethod(QuantizeMethodBase):
    """A head, its own matrix or rows of the embedding; the logits of tokens that it leaves out are minus infinity."""

    def __init__(self, folder: PackedFolder, name: str) -> None:
        self.folder, self.name = folder, name

    def create_weights(self, layer: Any, columns: int, rows: list[int], *sizes: Any, **more: Any) -> None:
        """Check that the matrix fits the layer; UserError where it does not."""
        entry, ids = self.folder.entries[self.name], self.folder.reader.head_rows
        own = self.name == HEAD
        self.folder.entry(self.name, ids if own and ids is not None else layer.org_vocab_size, columns)
        layer.rows = entry.rows if ids is None else ids

    def tie_weights(self, layer: Any, embed_tokens: Any) -> Any:
        return layer

    def process_weights_after_loading(self, layer: Any) -> None:
        self.folder.check_complete()
        ids = self.folder.reader.head_ids()
        if ids is not None and int(ids[-1]) >= layer.org_vocab_size:
            raise UserError(
                f"packed folder {self.folder.folder} has head id {int(ids[-1])} outside of its vocabulary: pack it "
                "again."
            )
        rows = None if self.name == HEAD else ids  # a head of its own is stored trimmed
        layer.register_buffer("matrices", keep([laid_out(self.folder, self.name, rows)]), persistent=False)
        layer.register_buffer("head_ids", ids, persistent=False)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Logits [..., padded vocabulary]."""
        logits = multiply(x, layer.matrices, layer.rows)
        whole = layer.num_embeddings_padded
        if layer.head_ids is not None:
            logits = logits.new_full((*x.shape[:-1], whole), -torch.inf).index_copy_(-1, layer.head_ids, logits)
        elif whole > layer.rows:
            logits = F.pad(logits, (0, whole - layer.rows), value=-torch.inf)
        return logits if bias is None else logits + bias


def laid_out(folder: PackedFolder, name: str, rows: Tensor | None = None) -> Any:
    """The packed matrix `name`, or these `rows` of it, as this CPU's kernels read it; UserError where it is damaged."""
    entry, tensors = folder.entries[name], folder.reader.tensors(name)
    with naming(folder):
        if (entry.kind, entry.values) == ("dense", "int4") and rows is None:
            return lay_out_nibbles(name, entry, tensors)[0]
        stored = unpack_matrix(name, entry, tensors)
        return lay_out(stored if rows is None else stored.rows(rows), entry.kind)[0]


@contextmanager
def naming(folder: PackedFolder) -> Iterator[None]:
    """Errors of what is read name the folder, too."""
    try:
        yield
    except UserError as error:
        raise UserError(f"packed folder {folder.folder}: {error}") from None
    except ValueError as error:
        raise UserError(f"packed folder {folder.folder} cannot be laid out ({error}): pack it again.") from None
