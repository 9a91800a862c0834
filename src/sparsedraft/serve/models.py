"""The models that are served: the target with each drafter, how many tokens each drafts, and what clients call them."""

from pathlib import Path

from sparsedraft.maths.sampling import Sampling
from sparsedraft.models.names import LOOKUP
from sparsedraft.serve.options import ServeOptions
from sparsedraft.serve.service import ALONE, Names
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Auto, Constant
from sparsedraft.speculate.policy.protocol import Policy
from sparsedraft.stages.generate.kept import KeptFile
from sparsedraft.stages.generate.options import GenerateOptions
from sparsedraft.writers.loaded import LoadedModel


def policy_of(options: ServeOptions, pair: Pair) -> Policy:
    """How many tokens are drafted a step: --k, or what pays best, starting from what `generate` learned of the pair."""
    if options.k is not None:
        return Constant(options.k)
    policy = Auto(reads_freely=options.parallel > 1)
    if pair.route != "none":
        same = {name: getattr(options, name) for name in ("dtype", "device", "cache")}
        KeptFile(pair, GenerateOptions(target=options.target, prompt=("",), **same)).start(policy.meter)
    return policy


def load_pairs(options: ServeOptions) -> list[Pair]:
    """The target alone, and with each drafter in their order, as far as they are to be loaded."""
    names = ("dtype", "device", "runtime", "cache", "template_args")
    loading = {name: getattr(options, name) for name in names}
    target = LoadedModel.load(options.target, **loading)
    pairs = [Pair.of(target, None, "auto", Sampling())]
    for name in options.drafter:
        other = name if name == LOOKUP else LoadedModel.load(name, **loading)
        pair = (
            Pair.of(target, other, options.uag, Sampling())
            .shared()
            .reading(options.drafter_window, options.drafter_sinks)
        )
        pairs.append(pair.with_lookup() if options.lookup and name != LOOKUP else pair)
    return pairs


def names_of(options: ServeOptions) -> Names:
    """What clients call the models, each by another name: never by a path of this machine."""
    target, taken = options.served_name or Path(options.target).resolve().name, [ALONE]
    for drafter in options.drafter:
        name = Path(drafter).resolve().name if drafter != LOOKUP else LOOKUP
        name = f"{name}-drafter" if name in (target, ALONE) else name
        again = next(n for n in range(1, len(taken) + 2) if (name if n == 1 else f"{name}-{n}") not in taken)
        taken.append(name if again == 1 else f"{name}-{again}")
    return Names(target, tuple(taken[1:]))
