"""Whether the keys and values of answers fit in memory, beside what the rows of the caches hold already."""

from collections.abc import Sequence
from typing import cast

from sparsedraft.native.model import check_prompts_fit
from sparsedraft.speculate.drafters.mixed import MixedDrafter
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.drafters.routed import RoutedDrafter
from sparsedraft.speculate.loop.joins import OpenDecoder
from sparsedraft.speculate.pair import Pair, PromptPair
from sparsedraft.writers.prefix import PrefixCache


def check_fit(decoder: OpenDecoder, pair: Pair, drafter: str | None, prompts: Sequence[PromptPair], most: int) -> None:
    """UserError where the keys and values of answers of `most` tokens to these prompts, all written at once, do not fit
    in free memory. Rows keep their memory for the next text, so what the rows of these would have is not counted."""
    tokens = []
    if pair.target.native is not None:
        own = [prompt.target for prompt in prompts]
        tokens.append((pair.target.native, _new(cast(PrefixCache, decoder.target), own, most)))
    if pair.drafter is not None and pair.drafter.native is not None:
        read = [pair.read(prompt) for prompt in prompts]
        longest = None if pair.window is None else pair.window.most
        tokens.append((pair.drafter.native, _new(_cache_of(decoder, drafter), read, most, longest)))
    check_prompts_fit(tokens)


def _new(cache: PrefixCache | None, texts: Sequence[list[int]], most: int, longest: int | None = None) -> int:
    """Tokens of these texts and of what follows for which there is no memory yet."""
    whole = [len(ids) + most for ids in texts]
    whole = whole if longest is None else [min(longest, count) for count in whole]
    held = cache.held(texts) if cache is not None else [0] * len(texts)
    return sum(max(0, count - known) for count, known in zip(whole, held, strict=True))


def _cache_of(decoder: OpenDecoder, name: str | None) -> PrefixCache | None:
    """The cache of the drafter of this name; None where it reads nothing."""
    drafter = decoder.drafter
    if isinstance(drafter, RoutedDrafter):
        drafter = drafter.drafters[cast(str, name)]
    if isinstance(drafter, MixedDrafter):
        drafter = drafter.model
    return cast(PrefixCache, drafter.backend) if isinstance(drafter, ModelDrafter) else None
