"""A target that counts, with drafters whose acceptance is known by construction."""

from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.loop.decode import Decoder, Generation, generate_all
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.speculate.trees.drafter import TreeDrafter
from toys import Toy, scripted

GREEDY = Sampling()
WRONG = 40


def right(n: int) -> int:
    """The target's token after n tokens."""
    return n % 10 + 1


def sometimes(n: int) -> int:
    """A drafter's that is wrong after every text whose length 4 divides."""
    return WRONG if n % 4 == 0 else right(n)


def decode(
    script, k: int, prompts: list[list[int]], n: int = 20, eos: int | None = None, branching: int = 1,
    context: int | None = None, drafter_context: int | None = None,
) -> tuple[list[Generation], Toy, Toy]:  # fmt: skip
    """What `right` makes of the prompts, with a drafter that goes by `script` (None: without); target and drafter."""
    target = scripted(right, len(prompts), max_length=context)
    drafter, model = None, scripted(script, len(prompts), max_length=drafter_context)
    if script is not None:
        drafter = TreeDrafter(model, GREEDY, branching) if branching > 1 else ModelDrafter(model, GREEDY)
    eos_ids = frozenset() if eos is None else frozenset({eos})
    decoder = Decoder(target, drafter, Constant(k), GREEDY, eos_ids)
    return generate_all(decoder, prompts, n, [0] * len(prompts)), target, model


def run(script, k: int, n: int = 20, **options) -> tuple[Generation, Toy]:
    (made,), target, _ = decode(script, k, [[0, 0, 0]], n, **options)
    return made, target


def text(start: int, n: int = 20) -> list[int]:
    return [right(start + i) for i in range(n)]


def accepted_runs(script, k: int, start: int, n: int) -> list[int]:
    """Drafts accepted, step by step, of a chain of K = k."""
    found, at, end = [], start, start + n
    while at < end:
        length = 0
        while length < min(k, end - at - 1) and script(at + length) == right(at + length):
            length += 1
        found.append(length)
        at += length + 1
    return found
