"""On-policy rows (DistillSpec, Zhou et al. 2024; GKD, Agarwal et al. 2024): the drafter writes, the target scores.

Trained on the target's text alone, a drafter never sees the prefixes that its own drafts lead to. A hash of (seed,
step, row) decides which rows of a step it writes itself, and every draw in them. So a resumed run, which starts the
step from the same weights, has the same rows.
"""

from collections.abc import Sequence
from itertools import takewhile

from transformers import PreTrainedModel

from sparsedraft.base.hashing import seed_of
from sparsedraft.maths.sampling import Sampling
from sparsedraft.text.bins import Bin, fill, samples_in
from sparsedraft.text.sample import Sample
from sparsedraft.writers.protocol.requests import Request
from sparsedraft.writers.transformers.completions import complete_all

BATCH = 32  # answers sampled at once


def rows_of_drafter(share: float, seed: int, step: int, rows: int) -> list[int]:
    """Which of the `rows` of a step the drafter writes itself: each with probability `share`."""
    return [row for row in range(rows) if seed_of(seed, step, row) < share * 2**56]


def rewrite(
    model: PreTrainedModel,
    rows: Sequence[Bin],
    *,
    share: float,
    seed: int,
    step: int,
    eos_ids: frozenset[int],
    vocabulary: int,
) -> list[Bin]:
    """`rows`, a `share` of them with answers that `model` samples at temperature 1 to the same prompts.

    A sampled answer is no longer than the target's, and ends before a token beyond `vocabulary`, the target's embedding
    rows (heads are padded to different widths). Where it would be empty, the target's answer stays. A drafter whose
    logits are NaN writes nothing; its rows stay as they are, and their loss shows the NaN.
    Pass all rows of a step, before the processes divide them: so every process runs the same forward passes, which FSDP
    needs, and gets the same rows. `model` is the plain module, not DDP's wrapper; it stays in eval mode.
    """
    picked = rows_of_drafter(share, seed, step, len(rows))
    samples = {(row, i): sample for row in picked for i, sample in enumerate(samples_in(rows[row]))}
    requests = [
        Request(f"{row}/{i}", s.prompt_ids, len(s.answer_ids), seed_of(seed, step, row, i))
        for (row, i), s in samples.items()
    ]
    model.eval()
    try:
        written = {
            output.id: [*takewhile(lambda token: token < vocabulary, output.token_ids)]
            for output in complete_all(
                model, requests, batch_size=BATCH, sampling=Sampling(temperature=1.0), eos_ids=eos_ids
            )
        }
    except FloatingPointError:
        return list(rows)
    result = list(rows)
    for row in picked:
        answers = [
            Sample("", s.prompt_ids, written[f"{row}/{i}"] or s.answer_ids)
            for (writer, i), s in samples.items()
            if writer == row
        ]
        result[row] = fill(answers, own=True)
    return result
