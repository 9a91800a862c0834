"""The real loop's numbers without the loop: one teacher-forced pass of the drafter over the target's own output.

Under greedy decoding every accepted prefix is the target's own text, so what the drafter would draft after it is known
from that text: the run accepted from a position is the run of argmax matches there, for every K at once.

Under sampling the loop's text has the target's own distribution, and given a text its drafts were accepted one by one
independently: of the chance p(x) of a token x, min(p(x), q(x)) is that of an accepted draft. So from a text that the
target sampled alone the expected numbers follow exactly, over all the chances of accepting.
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
    """At each of n places of a target's text: the chance [n] that a draft is accepted there, whichever it is (Σ_v
    min(p, q), whose mean is α), and the chance [n] that the token of the text was one. Greedy: both are 1 or 0."""

    shares: Tensor
    kept: Tensor


def simulate(matches: Tensor, k: int, room: int, context: int | None = None) -> Histogram:
    """The histogram of the greedy loop with K = k on an output of n tokens, of which `matches` [n] the drafter guessed.

    `room` is how many tokens could have been written (n < room: the output ended itself); `context` how many more
    tokens fit the drafter's context (None: no limit), beyond which it drafts nothing.
    """
    n, found, at = len(matches), Histogram(k), 0
    # run[i]: matches in a row from i on
    run = [0] * (n + 1)
    for i, match in reversed(list(enumerate(matches.tolist()))):
        run[i] = run[i + 1] + 1 if match else 0
    while at < n:
        drafted = max(0, min(k, room - at - 1, k if context is None else context - at))
        accepted = min(run[at], drafted)
        emitted = min(accepted + 1, n - at)  # the last accepted draft may be the end of the sequence
        found.add(accepted, drafted, emitted)
        at += emitted
    return found


def expected(kept: Tensor, k: int, room: int, context: int | None = None) -> Histogram:
    """The expected histogram of the sampled loop with K = k on a text of n tokens.

    kept [n]: the chance that a token, if one was drafted in its place, was that draft. `room` and `context` are those
    of `simulate`, whose histogram it is for chances of 0 and 1.
    """
    chances, chains = kept.tolist(), []
    for at in range(len(chances)):
        drafted = max(0, min(k, room - at - 1, k if context is None else context - at))
        chains.append((drafted, chances[at : at + drafted]))
    return over_chains(chains, k)


def over_chains(chains: Sequence[tuple[int, Sequence[float]]], k: int) -> Histogram:
    """The expected histogram of the sampled loop, from what a step would do that starts at each place of the text: how
    many drafts (at most k) it would make, and the chance of each of them that stands in the text, the others accepted.
    """
    n, found = len(chains), Histogram(k)
    starts = [1.0, *[0.0] * n]  # the chance that a step starts at each place
    for at, (drafted, chances) in enumerate(chains):
        alive = starts[at]
        for accepted, chance in enumerate(chances):
            lost = alive * (1 - chance)  # the text's token is the target's own, in the draft's place
            found.add(accepted, drafted, accepted + 1, lost)
            starts[at + accepted + 1] += lost
            alive -= lost
        accepted = min(drafted, n - at)
        emitted = min(accepted + 1, n - at)
        found.add(accepted, drafted, emitted, alive)
        starts[at + emitted] += alive
    return found


def acceptance_of(
    q: Backend,
    prompt: Sequence[int],
    output: Sequence[int],
    p: LogitsAfter | None,
    sampling: Sampling,
    vocabulary: VocabularyMap | None,
    known: int,
) -> Acceptance:
    """`acceptance` of one answer by the drafter's empty Backend and the target's logits; `known`: tokens that the
    drafter has a row for."""
    n = len(output) if q.max_length is None else max(0, min(len(output), q.max_length - len(prompt)))
    if not n:
        return Acceptance(torch.zeros(len(output)), torch.zeros(len(output)))
    ids = [*prompt, *output[:n]]
    logits = q.forward([[token if token < known else 0 for token in ids[:-1]]], [n])[0]
    sound(logits, "drafter", range(len(prompt), len(ids)))
    logits = logits if vocabulary is None else vocabulary.logits(logits)
    logits = penalised(logits, sampling, prompt, output[:n])
    theirs = None if p is None else penalised(p(ids[:-1], n), sampling, prompt, output[:n])
    return Acceptance(
        *(pad(x, (0, len(output) - n)) for x in _compared(logits, theirs, torch.tensor(ids[-n:]), sampling))
    )


def _compared(q: Tensor, p: Tensor | None, tokens: Tensor, sampling: Sampling) -> Acceptance:
    """From logits [n, V] of drafter and target (None: greedy) and the text's tokens [n]."""
    if p is None:
        matches = (likeliest(q) == tokens.cpu()).float()
        return Acceptance(matches, matches)
    mine, theirs = probabilities(q, sampling), probabilities(p, sampling)
    least = torch.minimum(theirs, mine)
    at = tokens.to(q.device)[:, None]
    kept = (least.gather(-1, at) / theirs.gather(-1, at)).squeeze(-1)
    return Acceptance(least.sum(-1), kept.nan_to_num(0.0))  # 0/0: the text's token is not the target's after all


@torch.inference_mode()
def acceptance(
    q: PreTrainedModel,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    p: PreTrainedModel | None,
    sampling: Sampling,
    vocabulary: VocabularyMap | None = None,
    reading: Callable[[PreTrainedModel, Bin], Tensor] = answer_logits,
    wanted: Collection[int] | None = None,
) -> Iterator[tuple[int, Acceptance]]:
    """For each (prompt ids, target-written ids), its index and the acceptance at each place, in no fixed order.

    Greedy: 1 where the drafter's argmax is the target's token, else 0 (`p` is None). Sampled: Σ min(p, q) of the warped
    distributions. `vocabulary` maps the drafter's logits to the target's tokens where the heads differ in width. As in
    the loop, the drafter reads tokens that it has no row for as 0, and places beyond its context count 0. `reading`
    gives the target's logits. With `wanted` only those indices are yielded, read together with the others that they
    would have been read with, so that they have the same bits. FloatingPointError for NaN logits of
    the drafter.
    """
    room, known = context_length(q), embedding_rows(q)
    readable = [
        len(output) if room is None else max(0, min(len(output), room - len(prompt))) for prompt, output in pairs
    ]
    wanted = range(len(pairs)) if wanted is None else wanted
    none = (torch.zeros(len(output)) for _, output in pairs)
    yield from ((i, Acceptance(zeros, zeros)) for i, zeros in enumerate(none) if not readable[i] and i in wanted)
    places = [i for i, n in enumerate(readable) if n]
    if not places:
        return
    samples = [Sample(str(i), pairs[i][0], pairs[i][1][: readable[i]]) for i in places]
    longest = max(len(s) for s in samples)
    for chosen in assign(samples, max(ROW, longest), abilities(q).packs and (p is None or abilities(p).packs)):
        if not any(places[i] in wanted for i in chosen):
            continue
        row, group = fill([samples[i] for i in chosen]).to(q.device), [places[i] for i in chosen]
        lengths = [readable[i] for i in group]

        def warped(logits: Tensor, group: list[int] = group, lengths: list[int] = lengths) -> Tensor:
            if sampling.repetition_penalty == 1:
                return logits
            parts = zip(group, logits.split(lengths), strict=True)
            return torch.cat([penalised(x, sampling, *pairs[i]) for i, x in parts])

        logits = answer_logits(q, replace(row, ids=row.ids.where(row.ids < known, 0)))
        sound(logits, "drafter", (row.positions[0, row.predict] + 1).tolist())
        logits = warped(logits if vocabulary is None else vocabulary.logits(logits))
        theirs = None if p is None else warped(reading(p, row))
        compared = _compared(logits, theirs, row.tokens, sampling)
        for i, shares, kept in zip(group, *(x.cpu().split(lengths) for x in compared), strict=True):
            if i not in wanted:
                continue
            beyond = (0, len(pairs[i][1]) - readable[i])
            yield i, Acceptance(pad(shares, beyond), pad(kept, beyond))
