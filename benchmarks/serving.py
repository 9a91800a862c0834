"""The server: one client beside `generate`, many beside llama.cpp's and ik_llama.cpp's servers, a long load, a chat.

    python benchmarks/serving.py [--only one,many,load,turn,public] [--bits int4,int8] [--requests 10000] [--quick]

one: tokens/s of a streaming client, and its first token. many: 1, 4, 8 and 16 clients at once, all servers in turns.
load: requests of which a tenth are cancelled and a tenth malformed. turn: the second turn of a long chat. public: the
figures of a public tool, without a goal.

The first run builds the peers and makes the models (three quarters of an hour, in the cache folder, where those of
fourbit.py and drafting.py are used); then it takes about an hour on 2 quiet cores. What is measured is also written to
serving/results in the cache folder as it comes, a file a group.
"""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import groups
from common import parser
from drafting_models import BITS, AidedModels, add_drafting_options
from serving_clients import beginnings
from serving_load import load
from serving_many import many
from serving_one import one, turn
from serving_own import Served
from serving_public import public
from sparsedraft.models import checkpoint
from whole_answers import Task

TOKENS = 48  # of an answer, at most
CLIENTS = "1,4,8,16"


class Bench(groups.Bench):
    """One run: its options, the models as they are first needed, and the rows."""

    name, makes = "serving", AidedModels
    models: AidedModels
    places = 4  # of the server where their number is not measured: its default

    @cached_property
    def tokenizer(self) -> Any:
        return checkpoint.load_tokenizer(self.models.target)

    @cached_property
    def beginnings(self) -> list[int]:
        """Tokens with which prompts begin that are to be distinct."""
        return beginnings(self.tokenizer)

    @cached_property
    def task(self) -> Task:
        """The prompts."""
        count, tokens = (3, 12) if self.options.quick else (self.options.limit, self.options.tokens)
        return Task.of(self.options.prompts, count, tokens, self.tokenizer)

    @property
    def bits(self) -> list[str]:
        """Those of the group `many`; the other groups take the first."""
        found: list[str] = self.options.bits.split(",")
        return found

    @property
    def clients(self) -> list[int]:
        """How many ask at once."""
        return [1, 2] if self.options.quick else [int(count) for count in self.options.clients.split(",")]

    @property
    def requests(self) -> int:
        """Of the load."""
        return 400 if self.options.quick else int(self.options.requests)

    @property
    def target(self) -> Path:
        """The packed target."""
        return self.models.target_in(self.bits[0])

    @cached_property
    def drafter(self) -> Path:
        """The packed drafter of the groups that do not choose one."""
        return [*self.drafters(self.bits[0]).values()][-1]

    @property
    def lookup(self) -> bool:
        """Whether look-up drafts beside it."""
        return not self.options.no_lookup

    def drafters(self, bits: str) -> dict[str, Path]:
        """The packed drafters by what they are, the sparse ones last."""
        return {"dense": self.models.dense(bits), **self.models.sparse(bits)}

    def served(self, places: int, drafter: Path | None, bits: str = "") -> Served:
        """Our server with so many places, and this drafter or none."""
        how: list[str | Path] = ["--drafter", drafter] if drafter else []
        how += ["--lookup"] if drafter and self.lookup else []
        return Served(self.models.target_in(bits or self.bits[0]), self.threads, places, *how)


GROUPS: dict[str, Callable[[Bench], None]] = {"one": one, "many": many, "load": load, "turn": turn, "public": public}


def main() -> None:
    arguments = parser(__doc__)
    add_drafting_options(arguments)
    groups.add_only(arguments, GROUPS)
    arguments.add_argument("--prompts", default="demo:eval", help="whose answers are timed, such as Spec-Bench's file")
    arguments.add_argument("--limit", type=int, default=24, help="prompts")
    arguments.add_argument("--tokens", type=int, default=TOKENS, help="of an answer, at most")
    arguments.add_argument("--bits", default="int4", help=f"of {', '.join(BITS)}, separated by commas")
    arguments.add_argument("--clients", default=CLIENTS, help="how many ask at once, separated by commas")
    arguments.add_argument("--requests", type=int, default=10_000, help="of the group load")
    arguments.add_argument("--no-lookup", action="store_true", help="the drafter alone, without look-up beside it")
    groups.main(Bench, GROUPS, arguments)


if __name__ == "__main__":
    main()
