"""What an evaluation compares: a drafter, look-up, or both in one."""

from dataclasses import dataclass
from pathlib import Path

from sparsedraft.models import checkpoint
from sparsedraft.models.config import drafting
from sparsedraft.models.names import LOOKUP, split_lookup


@dataclass(frozen=True)
class Entry:
    """`folder`: the drafter's checkpoint; None is look-up alone. `lookup`: look-up drafts beside the drafter."""

    folder: Path | None
    lookup: bool = False

    @classmethod
    def of(cls, ref: str) -> "Entry":
        """The entry that the command line calls `ref`. UserError where no such model is found."""
        model, beside = split_lookup(ref)
        return cls(None if ref == LOOKUP else checkpoint.find(model), beside)

    @property
    def own_window(self) -> tuple[int, int] | None:
        """The window, (size, sinks), that the drafter's folder names, if it does."""
        return None if self.folder is None else drafting.of(self.folder).reads

    @property
    def inputs(self) -> object:
        """What the result depends on."""
        return {"model": self.folder, LOOKUP: True} if self.lookup else self.folder or LOOKUP
