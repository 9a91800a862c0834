"""How to evaluate."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models.tokenizers.templates import Arguments
from sparsedraft.speculate.pair import LOOKUP, check_route
from sparsedraft.speculate.policy.policies import NAMES, policy_named
from sparsedraft.writers.server.secret import shown

POLICIES = tuple(name for name in NAMES if name != "constant")


@dataclass(frozen=True)
class Options:
    """How to evaluate; lengths in tokens. `k` holds numbers of drafts, and policies by name."""

    k: tuple[int | str, ...] | list[int | str] = (1, 2, 3, 5, 8)
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    simulate: bool = False
    uag: str = "auto"
    tree: int = 1  # branching of draft trees; 1: chains
    max_new_tokens: int = 128
    batch_size: int = 32
    limit: int | None = None  # prompts: the first so many,
    spread: bool = False  # or so many at equal distances, as files are often sorted by category
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    runtime: str = "auto"  # what runs the loop: native, transformers, or native where it can
    url: str | None = None  # of a server that runs the target (".../v1"), greedily and simulated only
    served_name: str | None = None  # the target's name there; None: as it is called here
    concurrency: int = 16  # calls to it under way at once
    template_args: Arguments = field(default_factory=dict)  # of the chat template, by name

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)

    @property
    def numbers(self) -> list[int]:
        """The K's that are numbers."""
        return sorted({k for k in self.k if isinstance(k, int)})

    @property
    def policies(self) -> list[str]:
        """The others."""
        return sorted({k for k in self.k if isinstance(k, str)})

    def check(self, drafters: Sequence[tuple[str, str]]) -> None:
        """UserError for what cannot be, before anything is loaded; drafters are (name, checkpoint or "lookup")."""
        _ = self.sampling
        check_route(self.uag)
        if self.simulate and (self.policies or self.tree > 1):
            what = f"--k {self.policies[0]}" if self.policies else f"--tree {self.tree}"
            raise UserError(f"{what} needs the real loop: leave out --simulate.")
        if self.url is not None and not (self.simulate and self.sampling.greedy and self.repetition_penalty == 1):
            raise UserError(
                f"--url {shown(self.url)}: what a server says tells of greedy drafting alone: give --simulate, and "
                "leave out what samples."
            )
        if self.tree < 1:
            raise UserError(f"--tree {self.tree} is not possible: give the branching of draft trees, or 1 for chains.")
        if self.tree > 1 and all(ref == LOOKUP for _, ref in drafters):
            raise UserError(f"--tree {self.tree} needs a model that drafts: name one, or leave it out.")
        names = [name for name, _ in drafters]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UserError(f"two drafters are called '{twice}': name them, as in first={drafters[0][1]}.")
        if "" in names:
            raise UserError("a drafter has an empty name: name it, as in first=MODEL.")
        for name in self.policies:
            policy_named(name)
