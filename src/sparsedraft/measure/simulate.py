"""The real loop's greedy numbers without the loop: one teacher-forced pass of the drafter over the target's own output.

Under greedy decoding every accepted prefix is the target's own text, so what the drafter would draft after it is known
from that text: the run accepted from a position is the run of argmax matches there, for every K at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from sparsedraft.decoder import context_length, embedding_rows
from sparsedraft.measure.acceptance import Histogram
from sparsedraft.packing import Sample, answer_logits, groups, pack, packable
from sparsedraft.speculate.backend import Backend
from sparsedraft.speculate.drafters import VocabularyMap, sound
from sparsedraft.speculate.sampling import Sampling, likeliest, penalised, probabilities

ROW = 1024  # tokens packed into one pass


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
        drafted = min(k, room - at - 1)
        if context is not None:
            drafted = max(0, min(drafted, context - at))
        accepted = min(run[at], drafted)
        emitted = min(accepted + 1, n - at)  # the last accepted draft may be the end of the sequence
        found.add(accepted, drafted, emitted)
        at += emitted
    return found


def acceptance_of(
    q: Backend,
    prompt: Sequence[int],
    output: Sequence[int],
    p: Backend | None,
    sampling: Sampling,
    vocabulary: VocabularyMap | None,
    known: int,
) -> Tensor:
    """`acceptance` of one answer by empty Backends; `known`: tokens that the drafter has a row for."""
    n = len(output) if q.max_length is None else max(0, min(len(output), q.max_length - len(prompt)))
    if not n:
        return torch.zeros(len(output))
    ids = [*prompt, *output[:n]]
    logits = q.forward([[token if token < known else 0 for token in ids[:-1]]], [n])[0]
    sound(logits, "drafter", range(len(prompt), len(ids)))
    logits = logits if vocabulary is None else vocabulary.logits(logits)
    logits = penalised(logits, sampling, prompt, output[:n])
    if p is None:
        shares = (likeliest(logits) == torch.tensor(ids[-n:])).float()
    else:
        theirs = probabilities(penalised(p.forward([ids[:-1]], [n])[0], sampling, prompt, output[:n]), sampling)
        shares = torch.minimum(theirs, probabilities(logits, sampling)).sum(-1)
    return pad(shares, (0, len(output) - n))


@torch.inference_mode()
def acceptance(
    q: PreTrainedModel,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    p: PreTrainedModel | None,
    sampling: Sampling,
    vocabulary: VocabularyMap | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """For each (prompt ids, target-written ids), its index and the per-position acceptance [n], in no fixed order.

    Greedy: 1 where the drafter's argmax is the target's token, else 0 (`p` is not looked at). Sampled: Σ_v min(p, q)
    of the warped distributions. Their mean is α (DESIGN §1). `vocabulary` maps the drafter's logits to the target's
    tokens where the heads differ in width. As in the loop, the drafter reads tokens that it has no row for as 0, and
    places beyond its context count 0. FloatingPointError for NaN logits of the drafter.
    """
    room, known = context_length(q), embedding_rows(q)
    readable = [
        len(output) if room is None else max(0, min(len(output), room - len(prompt))) for prompt, output in pairs
    ]
    yield from ((i, torch.zeros(len(output))) for i, (_, output) in enumerate(pairs) if not readable[i])
    places = [i for i, n in enumerate(readable) if n]
    if not places:
        return
    samples = [Sample(str(i), pairs[i][0], pairs[i][1][: readable[i]]) for i in places]
    longest = max(len(s) for s in samples)
    for chosen in groups(samples, max(ROW, longest), packable(q) and (p is None or packable(p))):
        row, group = pack([samples[i] for i in chosen]).to(q.device), [places[i] for i in chosen]
        lengths = [readable[i] for i in group]

        def warped(logits: Tensor, group: list[int] = group, lengths: list[int] = lengths) -> Tensor:
            if sampling.repetition_penalty == 1:
                return logits
            parts = zip(group, logits.split(lengths), strict=True)
            return torch.cat([penalised(x, sampling, *pairs[i]) for i, x in parts])

        logits = answer_logits(q, replace(row, ids=row.ids.where(row.ids < known, 0)))
        sound(logits, "drafter", (row.positions[0, row.predict] + 1).tolist())
        logits = warped(logits if vocabulary is None else vocabulary.logits(logits))
        if p is None:
            shares = (logits.argmax(-1) == row.tokens).float()
        else:
            theirs = probabilities(warped(answer_logits(p, row)), sampling)
            shares = torch.minimum(theirs, probabilities(logits, sampling)).sum(-1)
        for i, found in zip(group, shares.cpu().split(lengths), strict=True):
            yield i, pad(found, (0, len(pairs[i][1]) - readable[i]))
