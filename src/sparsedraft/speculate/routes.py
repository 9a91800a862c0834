"""One target with several drafters: texts that come and go, each drafted by the one that it names."""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import cast

from sparsedraft.maths.sampling import Sampling
from sparsedraft.speculate.drafters.routed import RoutedDrafter
from sparsedraft.speculate.loop.drafter import OpenDrafter
from sparsedraft.speculate.loop.joins import OpenDecoder
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.each import PolicyOfEach
from sparsedraft.speculate.policy.protocol import Policy
from sparsedraft.speculate.policy.sources import WithLookup


def open_decoder(
    pairs: Mapping[str, Pair],
    rows: int,
    policy: Callable[[str], Policy],
    sampling: Sampling,
    piece: int | None = None,
) -> OpenDecoder:
    """A decoder as `Pair.open_decoder` makes one, of pairs that have one target; texts name their drafters as `pairs`
    does. `policy` makes the policy of each, by its name.

    UserError as there; ValueError for pairs of several targets, or without a drafter.
    """
    first = next(iter(pairs.values()))
    if any(pair.target is not first.target or pair.route == "none" for pair in pairs.values()):
        raise ValueError("the pairs have several targets, or no drafter: give pairs of one target.")
    for pair in pairs.values():
        pair.check_open(rows)
    drafter = open_drafter(pairs, rows, policy, sampling)
    around = {pair.around for pair in pairs.values()}  # one that is not native needs torch's threads
    return OpenDecoder(
        first.target.open_backend(rows),
        drafter,
        drafter.policy,
        sampling,
        first.target.eos_ids,
        around=around.pop() if len(around) == 1 else nullcontext,
        piece=piece,
    )


def open_drafter(
    pairs: Mapping[str, Pair],
    rows: int,
    policy: Callable[[str], Policy],
    sampling: Sampling,
    clock: Callable[[], float] = time.perf_counter,
) -> RoutedDrafter:
    """The drafters of these pairs for texts that come and go, whoever verifies what they draft; its `policy` is to be
    asked and told of each step. `clock` returns seconds. See `open_decoder`."""
    policies = {
        name: WithLookup(policy(name), joins=True) if pair.lookup else policy(name) for name, pair in pairs.items()
    }
    drafters = {
        name: cast(OpenDrafter, pair.open_drafter(rows, policies[name], sampling)) for name, pair in pairs.items()
    }
    return RoutedDrafter(drafters, PolicyOfEach(policies), clock)
