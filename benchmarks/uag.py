"""Drafting across tokenizers, on real models: what both routes accept, and whether the text is the target's own.

    python benchmarks/uag.py TARGET DRAFTER PROMPTS [--prompts 4] [--tokens 32] [--k 5] [--threads 1] [--show]

TARGET and DRAFTER are checkpoints with different tokenizers, PROMPTS a file that `sparsedraft` reads. A model without a
chat template gets the bare prompt. `--show` prints every draft of which something was rejected, as text.
"""

import argparse
from itertools import takewhile

import torch

from common import close, row, setup
from sparsedraft.base.console import console
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.ends import ends
from sparsedraft.models.tokenizers import templates
from sparsedraft.speculate.loop.decode import Generation, generate
from sparsedraft.speculate.pair import Pair, PromptPair
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.text import prompts
from sparsedraft.writers.loaded import LoadedModel

TIE = 1e-3  # logits this close come out in either order


def side(ref: str) -> LoadedModel:
    model, tokenizer = checkpoint.load(ref), checkpoint.load_tokenizer(ref)
    return LoadedModel(model, tokenizer, ends(checkpoint.find(ref), tokenizer))


def asked(pair: Pair, prompt: prompts.Prompt) -> PromptPair:
    tokenizer = pair.target.tokenizer
    if tokenizer.chat_template is None:
        return pair.prompted(tokenizer(prompt.turns[0])["input_ids"])
    messages = [{"role": "user", "content": prompt.turns[0]}]
    return pair.prompted(templates.chat_ids(tokenizer, messages), messages)


@torch.inference_mode()
def near_ties(target: LoadedModel, ids: list[int], answer: list[int]) -> list[int]:
    """Where in `answer` the target's two best logits are closer than TIE."""
    logits = target.model(torch.tensor([ids + answer[:-1]]), logits_to_keep=len(answer)).logits[0].float()
    best = logits.topk(2, dim=-1).values
    return (best[:, 0] - best[:, 1] < TIE).nonzero()[:, 0].tolist()


def show(pair: Pair, ids: list[int], made: Generation) -> None:
    """Rejected drafts: the text before them, the draft token by token, and what the target wrote in its place."""
    decode, done = pair.target.tokenizer.decode, list(ids)
    for step in made.steps:
        if step.accepted < len(step.drafted):
            before, drafted = str(decode(done[-12:])), [decode([token]) for token in step.drafted]
            own = str(decode(step.emitted[-1:]))
            line = f"{before!r} + {drafted}, {step.accepted} accepted, then {own!r}"
            console.print(line, markup=False, soft_wrap=True)
        elif not step.drafted:
            console.print(f"{str(decode(done[-12:]))!r}: no draft", markup=False, soft_wrap=True)
        done += step.emitted


def main(options: argparse.Namespace) -> list[dict]:
    target, drafter = side(options.target), side(options.drafter)
    chosen = prompts.read(options.file)[: options.prompts]
    alone = Pair.of(target, None, "auto", Sampling())
    rows = []
    reference: list[list[int]] = []
    for route in ("realign", "intersection"):
        pair = Pair.of(target, drafter, route, Sampling())
        drafted = accepted = steps = tokens = differ = unexplained = ties = 0
        for number, prompt in enumerate(chosen):
            both = asked(pair, prompt)
            if len(reference) <= number:
                plain = alone.decoder([both], Constant(0), Sampling())
                reference.append(generate(plain, both.target, options.tokens).tokens)
            made = generate(pair.decoder([both], Constant(options.k), Sampling()), both.target, options.tokens)
            close_calls = near_ties(target, both.target, reference[number])
            same = len([*takewhile(lambda ab: ab[0] == ab[1], zip(made.tokens, reference[number], strict=False))])
            ties += len(close_calls)
            if made.tokens != reference[number]:
                differ += 1
                unexplained += same not in close_calls
            drafted += sum(len(step.drafted) for step in made.steps)
            accepted += sum(step.accepted for step in made.steps)
            steps, tokens = steps + len(made.steps), tokens + len(made.tokens)
            if options.show:
                show(pair, both.target, made)
        details: dict = {
            "acceptance": round(accepted / max(1, drafted), 3), "drafts_per_step": round(drafted / steps, 2),
            "k": options.k, "prompts": len(chosen), "tokens": tokens, "near_ties": ties, "answers_that_differ": differ,
        }  # fmt: skip
        rows.append(row(f"{route}: mean accepted length", tokens / steps, 1, unit="tokens a step", **details))
        rows.append(row(f"{route}: greedy answers that differ at no near-tie", unexplained, 0, "answers", "less"))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("target", "drafter", "file"):
        parser.add_argument(name)
    for name, default in (("prompts", 4), ("tokens", 32), ("k", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    setup(options.threads)
    close(main(options))
