"""A way to run the target: which drafter, how many drafts, what beside it; as a command, and as what is measured."""

import json
import shlex
from dataclasses import dataclass
from typing import Any

from sparsedraft.advise.options import AdviseOptions
from sparsedraft.models.names import LOOKUP
from sparsedraft.speculate.policy.policies import Auto, Constant
from sparsedraft.speculate.policy.protocol import Policy
from sparsedraft.speculate.policy.sources import WithLookup
from sparsedraft.stages.generate.options import GenerateOptions

ALONE = "the target alone"
# what a way has of the options, by the names that `generate` has for them, too
TAKEN = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "device", "dtype", "runtime", "cache",
    "template_args",
)  # fmt: skip


@dataclass(frozen=True)
class Way:
    """`drafter` None: the target alone. `k` None: the policy auto. `window` None: the drafter reads all of a text."""

    drafter: str | None
    k: int | None = None
    window: int | None = None
    lookup: bool = False

    def __str__(self) -> str:
        if self.drafter is None:
            return ALONE
        window = f", window {self.window}" if self.window else ""
        return f"{self.drafter}{window}, K={self.k or 'auto'}{', look-up beside it' if self.lookup else ''}"

    def policy(self) -> Policy:
        """A new policy, which has learned nothing yet."""
        if self.drafter is None:
            return Constant(0)
        policy = Auto() if self.k is None else Constant(self.k)
        return WithLookup(policy) if self.lookup else policy

    def generate_options(self, options: AdviseOptions) -> GenerateOptions:
        """How `generate` is told."""
        return GenerateOptions(target=options.target, prompt=("",), **self._given(), **_taken(options))

    def command(self, options: AdviseOptions) -> str:
        """The command line that runs the target so."""
        words = ["sparsedraft", "generate", options.target]
        for name, value in {**self._given(), **_told(options)}.items():
            flag = f"--{name.replace('_', '-')}"
            words += [flag] if value is True else [flag, str(value)]
        for name, value in options.template_args.items():
            words += ["--template-arg", f"{name}={json.dumps(value)}"]
        return shlex.join([*words, "--prompt", "..."])

    def _given(self) -> dict[str, Any]:
        given = {"drafter": self.drafter, "k": self.k, "drafter_window": self.window, "lookup": self.lookup or None}
        return {name: value for name, value in given.items() if value is not None}


def _taken(options: AdviseOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in TAKEN}


def _told(options: AdviseOptions) -> dict[str, Any]:
    """Those of TAKEN that differ from what `generate` takes anyway."""
    fields = AdviseOptions.model_fields
    return {
        name: value
        for name, value in _taken(options).items()
        if name != "template_args" and value != fields[name].get_default(call_default_factory=True)
    }


def beside(way: Way) -> list[Way]:
    """`way`, the same with K = auto, and that with look-up beside the drafter where it is a model."""
    auto = Way(way.drafter, None, way.window)
    return [way, auto] if way.drafter == LOOKUP else [way, auto, Way(way.drafter, None, way.window, lookup=True)]
