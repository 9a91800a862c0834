"""Evaluation by simulation against the real loop: the same prompts, the same drafter, all of K = 1, 2, 3, 5, 8."""

import tempfile
from pathlib import Path

import torch

from common import MODEL, close, row, seconds, setup
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.models.tokenizers.ends import end_ids
from sparsedraft.speculate.loop.decode import generate
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.stages.evaluate.acceptance import Histogram
from sparsedraft.stages.evaluate.simulation import acceptance, simulate
from sparsedraft.text.prompts import read
from sparsedraft.writers.conversation import Responder, answer_all
from sparsedraft.writers.loaded import LoadedModel

KS, PROMPTS, NEW_TOKENS = (1, 2, 3, 5, 8), 6, 48


def main() -> list[dict]:
    target, drafter = checkpoint.load(MODEL), checkpoint.load(MODEL)
    tokenizer = checkpoint.load_tokenizer(MODEL)
    with torch.no_grad():  # noise, so that it is accepted in part
        for linear in decoder_linears(drafter).values():
            linear.weight += 0.15 * linear.weight.std() * torch.randn(linear.weight.shape)
    eos_ids = end_ids(checkpoint.find(MODEL), tokenizer)
    side = LoadedModel(target, tokenizer, eos_ids)
    with tempfile.TemporaryDirectory() as folder:
        answers = answer_all(
            Responder(side.writer(PROMPTS), tokenizer, Sampling(), NEW_TOKENS, context=side.context),
            read("demo:eval")[:PROMPTS], journal=Path(folder) / "journal", description="target", batch_size=PROMPTS,
        )  # fmt: skip
    pair = Pair.of(side, LoadedModel(drafter, tokenizer, eos_ids), "off", Sampling())
    found: dict[str, list[Histogram]] = {"real": [], "simulated": []}

    def real() -> None:
        for answer in answers:
            for k in KS:
                decoder = pair.decoder([pair.prompted(list(answer.prompt_ids))], Constant(k), Sampling())
                made = generate(decoder, list(answer.prompt_ids), NEW_TOKENS)
                found["real"].append(Histogram.of_steps(made.steps, k))

    def simulated() -> None:
        pairs = [(a.prompt_ids, a.answer_ids) for a in answers]
        matches = dict(acceptance(drafter, pairs, None, Sampling()))
        for index in range(len(answers)):
            found["simulated"] += [simulate(matches[index].kept > 0.5, k, NEW_TOKENS) for k in KS]

    simulated()  # warm-up
    found["simulated"].clear()
    quick, slow = seconds(simulated), seconds(real)
    assert found["real"] == found["simulated"], "simulation and real loop differ"
    details: dict = {"seconds": round(quick, 2), "real_seconds": round(slow, 2), "histograms_equal": True}
    return [row("evaluation by simulation against the real loop", slow / quick, 10, **details)]


if __name__ == "__main__":
    setup()
    close(main())
