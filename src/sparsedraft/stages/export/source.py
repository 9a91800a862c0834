"""The weights of a checkpoint that is exported: floats, or the codes that it was rounded or packed to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor
from transformers import PretrainedConfig

from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint, claims, quantizers, rounded
from sparsedraft.models.config.sparsity import groups_of
from sparsedraft.models.gguf.write_blocks import is_finite
from sparsedraft.models.shards import Shards
from sparsedraft.models.skeleton import skeleton
from sparsedraft.native.packed_folder import PackedReader, is_packed
from sparsedraft.native.stored_matrix import StoredMatrix

HEAD = "lm_head.weight"
UNUSED = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.bias")  # buffers of older versions: they follow from config
FLOATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


class Source(Protocol):
    """The tensors of a checkpoint, by the names that transformers gives the model's parameters."""

    shapes: dict[str, tuple[int, ...]]  # of every parameter; a head that is tied to the embedding is none

    def type(self, name: str) -> str:
        """The type of a matrix's values: f32, f16, bf16, int8, int4, or of a GGUF file's blocks."""
        ...

    def vector(self, name: str) -> Tensor:
        """A norm's weight or a bias, float32."""
        ...

    def matrix(self, name: str, coded: bool) -> StoredMatrix:
        """A matrix as it is stored; `coded`: as codes, where the checkpoint has some beside its floats."""
        ...


class Plain:
    """A Hugging Face checkpoint; where `prune --quantize int4` rounded it, its codes are known."""

    def __init__(self, ref: str, folder: Path, config: PretrainedConfig) -> None:
        self.folder, self.shards = folder, Shards(folder)
        quantizers.check_plain(ref, config, self.shards, "export")
        self.stored = stored_names(ref, config, self.shards.shapes)
        self.shapes = {name: self.shards.shapes[stored] for name, stored in self.stored.items()}
        self.groups, self.claim = groups_of(folder), claims.claim_of(folder) or {"linears": {}}

    def type(self, name: str) -> str:
        kind = self.shards.types[self.stored[name]]
        if kind not in FLOATS:
            raise UserError(f"model {self.folder} stores {name} as {kind}: give a checkpoint of 16 or 32-bit floats.")
        return "int4" if name.removesuffix(".weight") in self.groups else FLOATS[kind]

    def vector(self, name: str) -> Tensor:
        return self.shards.tensor(self.stored[name]).float()

    def matrix(self, name: str, coded: bool) -> StoredMatrix:
        weight, linear = self.shards.tensor(self.stored[name]), name.removesuffix(".weight")
        if linear in self.claim["linears"]:
            claims.check_claim(self.claim, linear, weight, self.folder)
        codes = rounded.codes_of(self.folder, linear, weight) if coded else None
        return StoredMatrix(weight) if codes is None else StoredMatrix(codes.codes, codes.scale, codes.group)


class Packed:
    """A packed folder. UserError where its head is trimmed."""

    def __init__(self, ref: str, folder: Path, config: PretrainedConfig) -> None:
        self.reader = PackedReader(folder)
        if self.reader.head_rows is not None:
            raise UserError(
                f"model {ref} has a head trimmed to {self.reader.head_rows:,} tokens, which GGUF cannot express: pack "
                "the checkpoint without --head-tokens."
            )
        whole = Shards(folder).shapes
        shapes: dict[str, tuple[int, ...]] = {}
        for name, entry in self.reader.entries.items():
            shapes[f"{name}.weight"] = entry.rows, entry.columns
        shapes |= {name: whole[name] for name in self.reader.names - shapes.keys()}
        self.stored = stored_names(ref, config, shapes)
        self.shapes = {name: shapes[stored] for name, stored in self.stored.items()}

    def type(self, name: str) -> str:
        linear = self.stored[name].removesuffix(".weight")
        if linear not in self.reader.entries:
            raise UserError(f"packed folder {self.reader.folder} does not pack {linear}: pack the checkpoint again.")
        return self.reader.entries[linear].values

    def vector(self, name: str) -> Tensor:
        return self.reader.vector(self.stored[name])

    def matrix(self, name: str, coded: bool) -> StoredMatrix:
        return self.reader.matrix(self.stored[name])[0]


def source_of(ref: str, folder: Path, config: PretrainedConfig) -> Source:
    """What reads the checkpoint `ref` in `folder`; UserError for one whose weights cannot be exported."""
    if checkpoint.is_wrapped(folder):
        raise UserError(f"model {ref} is a text model inside a wrapper: give what prune or finetune made of it.")
    return Packed(ref, folder, config) if is_packed(folder) else Plain(ref, folder, config)


def stored_names(ref: str, config: PretrainedConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """{what transformers calls each parameter of the model: what the checkpoint calls it}.

    `shapes`: those of the checkpoint's tensors. UserError where one is missing, of another shape, or left over.
    """
    model = skeleton(config)
    prefix, found = model.base_model_prefix, {}
    wanted = dict(model.named_parameters(remove_duplicate=False))
    if config.tie_word_embeddings:
        wanted.pop(HEAD, None)
    for name, parameter in wanted.items():
        candidates = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
        stored = next((candidate for candidate in candidates if candidate in shapes), None)
        if stored is None:
            raise UserError(f"model {ref} lacks {name}: give a whole checkpoint.")
        if shapes[stored] != tuple(parameter.shape):
            raise UserError(
                f"model {ref} has {name} of {list(shapes[stored])}, where its config.json needs "
                f"{list(parameter.shape)}: give a whole checkpoint."
            )
        found[name] = stored
    spare = {HEAD} if config.tie_word_embeddings else set()
    left = sorted(name for name in shapes.keys() - {*found.values()} - spare if not name.endswith(UNUSED))
    if left:
        raise UserError(f"model {ref} holds {left[0]}, for which its config.json has no place: it would be lost.")
    return found


def finite(name: str, rows: Tensor) -> Tensor:
    """The same `rows` of the tensor `name`; UserError where a weight is not finite."""
    if not is_finite(rows):
        raise UserError(f"the tensor {name} has a weight that is not finite: mend the checkpoint.")
    return rows
