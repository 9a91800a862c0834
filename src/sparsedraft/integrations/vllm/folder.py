"""What a packed folder holds, by the names of vLLM's layers, which may be several of ours fused into one."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from sparsedraft.base.errors import UserError
from sparsedraft.native.packed_folder import PackedReader, is_packed
from sparsedraft.native.packed_format import MatrixEntry

EMBEDDING, HEAD = "embed_tokens", "lm_head"


class PackedFolder:
    """The packed folder of one model in vLLM, and which of its matrices the model has asked for.

    UserError, which names the folder, where its header cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        if not is_packed(folder):
            raise UserError(f"packed folder {folder} has no packed.json: copy or fetch the whole folder.")
        self.folder = folder
        self.entries = self.reader.entries
        self._asked: set[str] = set()
        self._complete = False

    @cached_property
    def reader(self) -> PackedReader:
        return PackedReader(self.folder)

    def __getstate__(self) -> dict[str, object]:  # files that are open stay where they are
        return {name: value for name, value in self.__dict__.items() if name != "reader"}

    def names(self, layer: str, fused: Mapping[str, Sequence[str]]) -> list[str]:
        """The packed matrices that make up vLLM's `layer`, in its order; none where the folder packs none of them.

        `fused`: for the last part of a layer's name, such as qkv_proj, those that it is made of. UserError where the
        folder packs only some of them.
        """
        parent, _, last = layer.rpartition(".")
        wanted = [f"{parent}.{part}" for part in fused.get(last, (last,))]
        found = [self._own(name) for name in wanted]
        names = [name for name in found if name is not None]
        if names and len(names) < len(wanted):
            lacking = wanted[found.index(None)]
            raise UserError(f"packed folder {self.folder} does not pack {lacking}: pack the checkpoint again.")
        self._asked.update(names)
        return names

    def embedding(self) -> str | None:
        """The packed embedding, which vLLM does not always name; None where the folder packs none."""
        name = next((name for name in self.entries if name.rpartition(".")[2] == EMBEDDING), None)
        self._asked.update(filter(None, [name]))
        return name

    def head(self) -> str | None:
        """The packed matrix of the head: its own, or the embedding that it is tied to."""
        return HEAD if HEAD in self.entries else self.embedding()

    def _own(self, layer: str) -> str | None:
        """The name that the folder has for `layer`: vLLM puts a prefix before those of a drafter."""
        if layer in self.entries:
            return layer
        _, _, rest = layer.partition(".")
        return self._own(rest) if rest else None

    def entry(self, name: str, rows: int, columns: int) -> MatrixEntry:
        """The entry of the matrix `name`; UserError where it is not of so many rows and columns."""
        entry = self.entries[name]
        if (entry.rows, entry.columns) != (rows, columns):
            raise UserError(
                f"packed folder {self.folder} has {name} of {entry.rows} rows and {entry.columns} columns, where vLLM "
                f"needs {rows} and {columns}: give --tensor-parallel-size 1, or pack the checkpoint again."
            )
        return entry

    def check_complete(self) -> None:
        """UserError where the model, now that it is built, has not asked for every matrix of the folder."""
        if HEAD in self.entries:
            self._asked.add(HEAD)
        left = None if self._complete else next((name for name in self.entries if name not in self._asked), None)
        if left is not None:
            raise UserError(
                f"packed folder {self.folder} packs {left}, which vLLM's model has in no layer that can be packed: "
                "serve the checkpoint that it was packed from."
            )
        self._complete = True
