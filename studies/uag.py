"""Drafting across tokenizers, on real models: what both routes accept, and whether the text is the target's own.

    python studies/uag.py TARGET DRAFTER PROMPTS [--prompts 4] [--tokens 32] [--k 5] [--threads 1] [--show]

TARGET and DRAFTER are checkpoints with different tokenizers, PROMPTS a file that `sparsedraft` reads. A model without a
chat template gets the bare prompt. `--show` prints every draft of which something was rejected, as text.
"""

import argparse
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import torch

from sparsedraft.base.console import console
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.ends import end_ids
from sparsedraft.native.loading import load
from sparsedraft.speculate.loop.decode import Generation, generate
from sparsedraft.speculate.pair import Pair, PromptPair
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.text import prompts
from sparsedraft.writers.loaded import LoadedModel
from study import close, setup

TIE = 1e-3  # logits this close come out in either order


def loaded(ref: str) -> LoadedModel:
    model, tokenizer = load(ref), checkpoint.load_tokenizer(ref)
    return LoadedModel(model, tokenizer, end_ids(checkpoint.find(ref), tokenizer))


def prompted_by(pair: Pair, prompt: prompts.Prompt) -> PromptPair:
    """The prompt as both models read it, in the target's chat template if it has one."""
    tokenizer = pair.target.tokenizer
    if tokenizer.chat_template is None:
        return pair.prompt_pair(tokenizer(prompt.turns[0])["input_ids"])
    messages = [{"role": "user", "content": prompt.turns[0]}]
    return pair.prompt_pair(templates.chat_ids(tokenizer, messages), messages)


@torch.inference_mode()
def near_ties(target: LoadedModel, ids: list[int], answer: list[int]) -> list[int]:
    """Where in `answer` the target's two best logits are closer than TIE."""
    logits = target.model(torch.tensor([ids + answer[:-1]]), logits_to_keep=len(answer)).logits[0].float()
    best = logits.topk(2, dim=-1).values
    return (best[:, 0] - best[:, 1] < TIE).nonzero()[:, 0].tolist()


def show(pair: Pair, ids: list[int], text: Generation) -> None:
    """Rejected drafts: the text before them, the draft token by token, and what the target wrote in its place."""
    decode, context = pair.target.tokenizer.decode, list(ids)
    for step in text.steps:
        before = str(decode(context[-12:]))
        if step.accepted < len(step.drafted):
            draft, correction = [decode([token]) for token in step.drafted], str(decode(step.emitted[-1:]))
            line = f"{before!r} + {draft}, {step.accepted} accepted, then {correction!r}"
            console.print(line, markup=False, soft_wrap=True)
        elif not step.drafted:
            console.print(f"{before!r}: no draft", markup=False, soft_wrap=True)
        context += step.emitted


def compare(options: argparse.Namespace, target: LoadedModel, drafter: LoadedModel) -> Iterator[dict[str, Any]]:
    """A row for each route: what it accepts, and where its greedy text is not the target's own."""
    questions = prompts.read(options.file)[: options.prompts]
    alone = Pair.of(target, None, "auto", Sampling())
    prompted = [prompted_by(alone, prompt) for prompt in questions]
    plain = [alone.decoder([both], Constant(0), Sampling()) for both in prompted]
    answers = [
        generate(decoder, both.target, options.tokens).tokens for decoder, both in zip(plain, prompted, strict=True)
    ]
    ties = [near_ties(target, both.target, answer) for both, answer in zip(prompted, answers, strict=True)]
    for route in ("realign", "intersection"):
        pair = Pair.of(target, drafter, route, Sampling())
        texts = []
        for prompt in questions:
            both = prompted_by(pair, prompt)
            texts.append(generate(pair.decoder([both], Constant(options.k), Sampling()), both.target, options.tokens))
            if options.show:
                show(pair, both.target, texts[-1])
        steps = [step for text in texts for step in text.steps]
        drafted, tokens = sum(len(step.drafted) for step in steps), sum(len(text.tokens) for text in texts)
        parted = [
            parting(text.tokens, answer) in near
            for text, answer, near in zip(texts, answers, ties, strict=True)
            if text.tokens != answer
        ]
        yield {
            "route": route, "k": options.k, "prompts": len(questions), "tokens": tokens, "mal": tokens / len(steps),
            "acceptance": sum(step.accepted for step in steps) / max(1, drafted),
            "drafts_per_step": drafted / len(steps), "near_ties": sum(map(len, ties)),
            "answers_that_differ": len(parted), "of_them_at_no_near_tie": parted.count(False),
        }  # fmt: skip


def parting(text: list[int], answer: list[int]) -> int:
    """How many tokens the two share before they differ."""
    return len([*takewhile(lambda both: both[0] == both[1], zip(text, answer, strict=False))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("target", "drafter", "file"):
        parser.add_argument(name)
    for name, default in (("prompts", 4), ("tokens", 32), ("k", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    setup(options.threads)
    rows = []
    for row in compare(options, loaded(options.target), loaded(options.drafter)):
        console.print(row)
        rows.append(row)
    close(rows)


if __name__ == "__main__":
    main()
