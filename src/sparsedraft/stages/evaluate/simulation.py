"""The real loop's numbers without the loop: one teacher-forced pass of the drafter over the target's own output.

Under greedy decoding every accepted prefix is the target's own text, so the text alone says what the drafter drafts
after it: the run of drafts accepted from a position is the run of argmax matches there, for every K at once.

Under sampling the loop's text has the target's own distribution, and the text alone says by which chance its tokens
were accepted drafts. Token by token: of the chance p(x) of a token x, the part min(p(x), q(x)) is that of an accepted
draft. As a block: given the text, i drafts or more are accepted with the chance min_(j ≤ i) Π_(l ≤ j) q(x_l) / p(x_l),
or 1 where that is less, as follows from the rule's w_i (see `accept_block`). So the expected numbers follow exactly
from a text that the target sampled alone, summed over all ways of accepting.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from sparsedraft.maths.sampling import Sampling, likeliest, penalised, probabilities, sound
from sparsedraft.models.decoder import context_length, embedding_rows
from sparsedraft.speculate.drafters.vocabulary import VocabularyMap
from sparsedraft.stages.evaluate.acceptance import Histogram
from sparsedraft.text.bins import Bin, assign, fill
from sparsedraft.text.logits import answer_logits
from sparsedraft.text.sample import Sample
from sparsedraft.writers.protocol.backend import Backend
from sparsedraft.writers.transformers.abilities import abilities

ROW = 1024  # tokens packed into one pass

LogitsAfter = Callable[[Sequence[int], int], Tensor]  # a model's logits [n, V] after each of the last n of some tokens


class Acceptance(NamedTuple):
    """What is known of each of n places of a target's text; greedy, both are 1 or 0."""

    shares: Tensor  # [n]: that a draft is accepted there, whichever it is: Σ_v min(p(v), q(v)), whose mean is α
    ratios: Tensor  # [n]: q(x) / p(x) of the text's token x


def simulate(matches: Tensor, k: int, room: int, context: int | None = None) -> Histogram:
    """The histogram of the greedy loop with K = k on an output of n tokens, of which `matches` [n] the drafter guessed.

    `room` is how many tokens could have been written; where n < room, the output ended itself. `context` is how many
    tokens fit the drafter's context after the prompt (None: no limit); beyond it the drafter drafts nothing.
    """
    n, histogram, at = len(matches), Histogram(k), 0
    # run[i]: matches in a row from i on
    run = [0] * (n + 1)
    for i, match in reversed(list(enumerate(matches.tolist()))):
        run[i] = run[i + 1] + 1 if match else 0
    while at < n:
        drafted = max(0, min(k, room - at - 1, k if context is None else context - at))
        accepted = min(run[at], drafted)
        emitted = min(accepted + 1, n - at)  # the last accepted draft may be the end of the sequence
        histogram.add(accepted, drafted, emitted)
        at += emitted
    return histogram


def expected(
    ratios: Tensor, k: int, room: int, context: int | None = None, *, verification: str = "block"
) -> Histogram:
    """The expected histogram of the sampled loop with K = k on a text of n tokens.

    ratios [n]: q(x) / p(x) of each token x of the text. `room` and `context` are those of `simulate`, whose histogram
    it is for ratios of 0 and 1; `verification` is that of `Sampling`.
    """
    of_text, chains = ratios.tolist(), []
    for at in range(len(of_text)):
        drafted = max(0, min(k, room - at - 1, k if context is None else context - at))
        chains.append((drafted, kept(of_text[at : at + drafted], verification)))
    return over_chains(chains, k)


def kept(ratios: Sequence[float], verification: str) -> list[float]:
    """The chance of each token of a chain that it was an accepted draft, given that those before it were.

    `ratios`: q(x) / p(x) of each token x, as the chain's drafts.
    """
    if verification == "token":
        return [min(1.0, ratio) for ratio in ratios]
    chances, product, least = [], 1.0, 1.0  # Π q / p, and the least of those so far and 1
    for ratio in ratios:
        product = product * ratio if min(product, ratio) > 0 else 0.0  # what has no chance never gets one
        chances.append(min(1.0, product / least) if least > 0 else 0.0)
        least = min(least, product)
    return chances


def over_chains(chains: Sequence[tuple[int, Sequence[float]]], k: int) -> Histogram:
    """The expected histogram of the sampled loop, from the chain of drafts of a step that starts at each place.

    A chain says how many drafts (at most k) the step makes, and for each of the text's tokens among them the chance
    that it was an accepted draft, given that those before it were.
    """
    n, histogram = len(chains), Histogram(k)
    starts = [1.0, *[0.0] * n]  # the chance that a step starts at each place
    for at, (drafted, chances) in enumerate(chains):
        alive = starts[at]
        for accepted, chance in enumerate(chances):
            lost = alive * (1 - chance)  # the text's token is the target's own, in the draft's place
            histogram.add(accepted, drafted, accepted + 1, lost)
            starts[at + accepted + 1] += lost
            alive -= lost
        accepted = min(drafted, n - at)
        emitted = min(accepted + 1, n - at)
        histogram.add(accepted, drafted, emitted, alive)
        starts[at + emitted] += alive
    return histogram


Text = tuple[Sequence[int], Sequence[int]]  # the prompt's ids, and those that the target wrote


def acceptance_of(
    q: Backend,
    prompt: Sequence[int],
    output: Sequence[int],
    p: LogitsAfter | None,
    sampling: Sampling,
    vocabulary: VocabularyMap | None,
    known: int,
    drafting: Sampling | None = None,
) -> Acceptance:
    """`acceptance` of one text by the drafter's empty Backend `q` and the target's logits.

    The drafter has a row for the tokens below `known`. `sampling` makes p, `drafting` q (None: as p).
    """
    n = _readable(q.max_length, prompt, output)
    if not n:
        return _nowhere(output)
    ids = [*prompt, *output[:n]]
    q_logits = q.forward([[token if token < known else 0 for token in ids[:-1]]], [n])[0]
    sound(q_logits, "drafter", range(len(prompt), len(ids)))
    q_logits = q_logits if vocabulary is None else vocabulary.logits(q_logits)
    q_logits = penalised(q_logits, sampling, prompt, output[:n])
    p_logits = None if p is None else penalised(p(ids[:-1], n), sampling, prompt, output[:n])
    found = _compare(q_logits, p_logits, torch.tensor(ids[-n:]), sampling, drafting or sampling)
    return _extended(found, output)


@torch.inference_mode()
def acceptance(
    q: PreTrainedModel,
    texts: Sequence[Text],
    p: PreTrainedModel | None,
    sampling: Sampling,
    vocabulary: VocabularyMap | None = None,
    reading: Callable[[PreTrainedModel, Bin], Tensor] = answer_logits,
    places: Collection[int] | None = None,
    drafting: Sampling | None = None,
) -> Iterator[tuple[int, Acceptance]]:
    """The place of each text in `texts`, and the acceptance along its output; in no fixed order.

    Greedy (`p` is None): 1 where the drafter's argmax is the target's token, else 0. Sampled: Σ_v min(p, q) of the
    warped distributions: `sampling` makes p, `drafting` q (None: as p). `vocabulary` maps the drafter's logits to the
    target's tokens where the heads differ in width. As in the loop, the drafter reads a token that it has no row for as
    0, and drafts nothing beyond its context, which counts 0. `reading` gives the target's logits. With `places` only
    these texts are yielded; they are read in the same bins as if all were, so that their logits have the same bits.
    FloatingPointError for NaN logits of the drafter.
    """
    places = range(len(texts)) if places is None else places
    lengths = [_readable(context_length(q), prompt, output) for prompt, output in texts]
    yield from ((place, _nowhere(texts[place][1])) for place, n in enumerate(lengths) if not n and place in places)
    readable = [place for place, n in enumerate(lengths) if n]
    samples = [Sample(str(place), texts[place][0], texts[place][1][: lengths[place]]) for place in readable]
    longest = max((len(sample) for sample in samples), default=0)
    for group in assign(samples, max(ROW, longest), abilities(q).packs and (p is None or abilities(p).packs)):
        if not any(readable[i] in places for i in group):
            continue
        inside = [samples[i] for i in group]
        row = fill(inside).to(q.device)
        p_logits = None if p is None else reading(p, row)
        found = _of_bin(_drafter_logits(q, row, vocabulary), p_logits, row, inside, sampling, drafting or sampling)
        for i, of_sample in zip(group, found, strict=True):
            if (place := readable[i]) in places:
                yield place, _extended(of_sample, texts[place][1])


def _drafter_logits(q: PreTrainedModel, row: Bin, vocabulary: VocabularyMap | None) -> Tensor:
    """The drafter's logits [n, V] at the places of the bin's outputs, by the target's tokens."""
    logits = answer_logits(q, replace(row, ids=row.ids.where(row.ids < embedding_rows(q), 0)))
    sound(logits, "drafter", (row.positions[0, row.predict] + 1).tolist())
    return logits if vocabulary is None else vocabulary.logits(logits)


def _of_bin(
    q: Tensor, p: Tensor | None, row: Bin, samples: Sequence[Sample], sampling: Sampling, drafting: Sampling
) -> Iterator[Acceptance]:
    """The acceptance of each of the samples in a bin, from logits [n, V] of drafter and target (None: greedy)."""
    sizes = [len(sample.answer_ids) for sample in samples]

    def penalise(logits: Tensor) -> Tensor:
        if sampling.repetition_penalty == 1:
            return logits
        parts = zip(samples, logits.split(sizes), strict=True)
        return torch.cat([penalised(part, sampling, sample.prompt_ids, sample.answer_ids) for sample, part in parts])

    found = _compare(penalise(q), None if p is None else penalise(p), row.tokens, sampling, drafting)
    yield from (Acceptance(*parts) for parts in zip(*(x.cpu().split(sizes) for x in found), strict=True))


def _compare(q: Tensor, p: Tensor | None, tokens: Tensor, sampling: Sampling, drafting: Sampling) -> Acceptance:
    """From logits [n, V] of drafter and target (None: greedy) and the text's tokens [n]."""
    if p is None:
        matches = (likeliest(q) == tokens.cpu()).float()
        return Acceptance(matches, matches)
    q_chances, p_chances = probabilities(q, drafting), probabilities(p, sampling)
    least = torch.minimum(p_chances, q_chances)
    at = tokens.to(q.device)[:, None]
    return Acceptance(least.sum(-1), ratio(q_chances, p_chances, at).squeeze(-1))


def ratio(q: Tensor, p: Tensor, tokens: Tensor) -> Tensor:
    """q(x) / p(x) [n, 1] of the `tokens` x [n, 1], distributions [n, V]; 0 where x is not the target's after all."""
    above, below = q.gather(-1, tokens), p.gather(-1, tokens)
    return torch.where(below > 0, above / below, 0)


def _readable(context: int | None, prompt: Sequence[int], output: Sequence[int]) -> int:
    """How many of the output's tokens a drafter with this context can draft."""
    return len(output) if context is None else max(0, min(len(output), context - len(prompt)))


def _nowhere(output: Sequence[int]) -> Acceptance:
    """Of a text that the drafter cannot read."""
    return Acceptance(torch.zeros(len(output)), torch.zeros(len(output)))


def _extended(found: Acceptance, output: Sequence[int]) -> Acceptance:
    """The same with 0 at the places of the output that lie beyond the drafter's context."""
    beyond = (0, len(output) - len(found.shares))
    return Acceptance(pad(found.shares, beyond), pad(found.ratios, beyond))
