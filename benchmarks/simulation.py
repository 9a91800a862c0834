"""Evaluation by simulation against the real loop: the same prompts, the same drafter, all of K = 1, 2, 3, 5, 8.

    python benchmarks/simulation.py [--quick]

About 3 minutes.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from common import MODEL, parser, run, seconds
from record import Table
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
from sparsedraft.writers.conversation import Answer, Responder, answer_all
from sparsedraft.writers.loaded import LoadedModel

KS = (1, 2, 3, 5, 8)


def noisy(model: Any) -> Any:
    """`model` with noise on its decoder linears, so that its drafts are accepted in part."""
    with torch.no_grad():
        for linear in decoder_linears(model).values():
            linear.weight += 0.15 * linear.weight.std() * torch.randn(linear.weight.shape)
    return model


def answers_of(target: LoadedModel, count: int, tokens: int) -> list[Answer]:
    """The target's greedy answers to the first `count` prompts."""
    responder = Responder(target.writer(count), target.tokenizer, Sampling(), tokens, context=target.context)
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "journal"
        return answer_all(responder, read("demo:eval")[:count], journal=journal, description="target", batch_size=count)


def real(pair: Pair, answers: list[Answer], tokens: int) -> list[Histogram]:
    """Accepted drafts by answer and K, from the decoding loop."""
    found = []
    for answer in answers:
        ids = list(answer.prompt_ids)
        for k in KS:
            text = generate(pair.decoder([pair.prompt_pair(ids)], Constant(k), Sampling()), ids, tokens)
            found.append(Histogram.of_steps(text.steps, k))
    return found


def simulated(drafter: Any, answers: list[Answer], tokens: int) -> list[Histogram]:
    """The same, from one reading of the answers."""
    matches = dict(acceptance(drafter, [(a.prompt_ids, a.answer_ids) for a in answers], None, Sampling()))
    return [simulate(matches[index].ratios > 0.5, k, tokens) for index in range(len(answers)) for k in KS]


def work(options: argparse.Namespace, table: Table) -> None:
    count, tokens = (2, 12) if options.quick else (6, 48)
    tokenizer, eos_ids = (
        checkpoint.load_tokenizer(MODEL),
        end_ids(checkpoint.find(MODEL), checkpoint.load_tokenizer(MODEL)),
    )
    target = LoadedModel(checkpoint.load(MODEL), tokenizer, eos_ids)
    drafter = noisy(checkpoint.load(MODEL))
    answers = answers_of(target, count, tokens)
    pair = Pair.of(target, LoadedModel(drafter, tokenizer, eos_ids), "off", Sampling())
    histograms: dict[str, list[Histogram]] = {}

    def keep(name: str, found: list[Histogram]) -> None:
        histograms[name] = found

    simulated(drafter, answers, tokens)  # warm-up
    quick = seconds(lambda: keep("simulated", simulated(drafter, answers, tokens)))
    slow = seconds(lambda: keep("real", real(pair, answers, tokens)))
    if histograms["real"] != histograms["simulated"]:
        raise RuntimeError("simulation and the real loop accept different drafts")
    figures = {"seconds": round(quick, 2), "real_seconds": round(slow, 2), "histograms_equal": True}
    table.ratio("evaluation by simulation / the real loop", slow / quick, 10, **figures)


if __name__ == "__main__":
    run("simulation", parser(__doc__).parse_args(), work)
