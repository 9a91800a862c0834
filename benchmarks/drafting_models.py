"""Drafters with the same aids in int8 and int4, dense and sparse: their heads follow the text."""

import argparse
from functools import cached_property
from pathlib import Path

from fourbit_models import Models, add_options, packed
from sparsedraft.base.errors import UserError
from sparsedraft.models import checkpoint
from sparsedraft.models.config.sparsity import claim_of
from sparsedraft.native.layout_choice import takes_bytes
from sparsedraft.native.packed_folder import is_packed

BITS = ("int8", "int4")


class AidedModels(Models):
    """The target in int8 and int4, and each drafter in both with a head that follows the text."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self._made: dict[tuple[str, str], Path] = {}  # by name and bits, so that each is looked at once a run

    def target_in(self, bits: str) -> Path:
        """The packed target."""
        return self.int8 if bits == "int8" else self.int4

    @cached_property
    def head_data(self) -> Path:
        """Whose frequent tokens the heads always look at."""
        return Path(self.options.head_data) if self.options.head_data else self.data

    def dense(self, bits: str) -> Path:
        """The dense drafter: the one of --fine-tuned-dense, or as it was published."""
        tuned = self.options.fine_tuned_dense
        return self.aided(tuned or self.drafter, "dense-tuned" if tuned else "dense", bits)

    def one_shot_of(self, pattern: str, bits: str) -> Path:
        """The drafter pruned to `pattern`; for int4 it was rounded in the same sweep."""
        name = f"one-shot-{pattern.replace(':', 'of')}"
        found = self._made.get((name, bits))
        return found or self.aided(str(self.pruned(pattern, joint=bits == "int4")), name, bits, pattern)

    def sparse(self, bits: str) -> dict[str, Path]:
        """The sparse drafters, by what they are."""
        patterns = ("2:4", "4:8") if bits == "int8" else ("2:4",)  # in int4 each is pruned anew, which takes minutes
        found = {f"one-shot {pattern}": self.one_shot_of(pattern, bits) for pattern in patterns}
        if tuned := self.options.fine_tuned:
            claim = claim_of(checkpoint.find(tuned))
            pattern = claim["pattern"] if claim else "dense"
            found[f"fine-tuned {pattern}"] = self.aided(tuned, "fine-tuned", bits, pattern)
        return found

    def aided(self, model: str, name: str, bits: str, pattern: str = "dense") -> Path:
        """The drafter `model` packed in `bits` with a head that follows. UserError for one that is packed already.

        int8 by a mask is multiplied with activations of 8 bits, which is faster there; dense with 16, as the target.
        """
        if is_packed(checkpoint.find(model)):
            raise UserError(f"drafter {model} is packed already, and is to be compared in {bits}: give its checkpoint.")
        tokens = 8192 if self.quick else self.options.head_tokens
        how = self._fast() if bits == "int4" else ["--weights", "int8"]
        folder = f"{name}-{bits}-follows-{tokens}"
        if bits == "int8" and pattern != "dense" and takes_bytes(pattern, bits):
            folder, how = f"{folder}-activations-8", [*how, "--activations", "8"]
        how += ["--head-tokens", str(tokens), "--head-data", str(self.head_data), "--head-follows"]
        if (name, bits) not in self._made:
            self._made[name, bits] = packed(model, self.folder / folder, *how)
        return self._made[name, bits]


def add_drafting_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which models are measured, and how they draft."""
    add_options(parser)
    parser.add_argument(
        "--fine-tuned-dense", help="a dense drafter trained on what --fine-tuned was; default: as it was published"
    )
    parser.add_argument("--head-tokens", type=int, default=32768, help="rows of the head that drafts always look at")
    parser.add_argument("--head-data", help="distilled data whose frequent tokens those are")
    parser.add_argument("--window", type=int, default=512, help="tokens of a long text's end that drafters read")
    parser.add_argument("--sinks", type=int, default=4, help="and of its beginning")
