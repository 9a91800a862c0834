"""Two sides with different tokenizers whose texts are scripts."""

import random
from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sparsedraft.maths.sampling import Sampling
from sparsedraft.models.tokenizers.retokenizer import inner
from sparsedraft.speculate.loop.decode import Generation, generate_all
from sparsedraft.speculate.loop.stops import Stops
from sparsedraft.speculate.pair import Pair, PromptPair
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.speculate.tokenizers import uag
from sparsedraft.writers.loaded import LoadedModel
from tiny import build_llama
from tokens import built
from toys import Toy

GREEDY = Sampling()
PROMPT = "the prompt ends here:"


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@cache
def small(tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> LlamaForCausalLM:
    return build_llama(seed, layers=1, vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32)


class Scripted(LoadedModel):
    """A side that writes `texts` after the prompts of the same number, at times (`wrong`) something else."""

    takes_masks = True  # scripts need none

    def __init__(
        self,
        model: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: frozenset[int],
        prompts: tuple[list[int], ...] = (),
        texts: tuple[str, ...] = (),
        wrong: float = 0.0,
    ) -> None:
        super().__init__(model, tokenizer, eos_ids)
        self.prompts, self.texts, self.wrong = prompts, texts, wrong

    def backend(self, rows: int) -> Toy:
        tokenizer, size, end = self.tokenizer, len(self.tokenizer), self.tokenizer.eos_token_id
        answers = [[*(p.id for p in inner(tokenizer, text)), end] if text else [end] for text in self.texts]
        anchor = inner(tokenizer, "x")[0].id

        def after(ids: list[int]) -> torch.Tensor:
            number = next(i for i, prompt in enumerate(self.prompts) if ids[: len(prompt)] == prompt)
            own, answer, text = ids[len(self.prompts[number]) :], answers[number], self.texts[number]
            written = decoded(tokenizer, [anchor, *own])[1:]
            dice = random.Random(repr((written, number)))
            if own == answer[: len(own)]:
                token = answer[len(own)] if len(own) < len(answer) else end
            elif text.startswith(written) and own[-1] != end:
                rest = (
                    inner(tokenizer, text[len(written) :]) if written != text else []
                )  # also where it cannot write it
                token = rest[0].id if rest else end
            else:
                token = dice.randrange(size)
            if dice.random() < self.wrong:
                token = dice.randrange(size)
            return torch.zeros(size).scatter_(0, torch.tensor([token]), 20.0)

        return Toy(after, rows)


class Words(Scripted):
    """Writes nothing but whole tokens of its text at once: behind a token that is not of them it is lost."""

    def backend(self, rows: int) -> Toy:
        t, size = self.tokenizer, len(self.tokenizer)
        (prompt,), (text,) = self.prompts, self.texts
        answer = [*(p.id for p in inner(t, text)), t.eos_token_id]

        def after(ids: list[int]) -> torch.Tensor:
            own = ids[len(prompt) :]
            lost = own != answer[: len(own)] or len(own) == len(answer)
            return torch.zeros(size).scatter_(0, torch.tensor([0 if lost else answer[len(own)]]), 20.0)

        return Toy(after, rows)


def sides(
    target: str, drafter: str, texts: list[str], wrong: float = 0.0, prompts: list[str] | None = None
) -> tuple[Scripted, Scripted, list[PromptPair]]:
    """Both sides writing `texts` after prompts of which none begins another; and these prompts."""
    p, q = built(target), built(drafter)
    spoken = prompts or [f"{PROMPT} {chr(ord('a') + i)}:" for i in range(len(texts))]
    asked = [PromptPair(p(text)["input_ids"], uag.opening(q, text)) for text in spoken]
    eos = (frozenset({p.eos_token_id}), frozenset({q.eos_token_id}))
    return (
        Scripted(small(p), p, eos[0], tuple(x.target for x in asked), tuple(texts)),
        Scripted(small(q), q, eos[1], tuple(x.drafter for x in asked), tuple(texts), wrong),
        asked,
    )


def run(
    pair: Pair, asked: list[PromptPair], k: int, n: int, sampling: Sampling = GREEDY, stops: Stops | None = None
) -> list[Generation]:
    decoder = pair.decoder(asked, Constant(k), sampling, stops=stops)
    return generate_all(decoder, [x.target for x in asked], n, list(range(len(asked))))


def tiny_vocabulary(tokens: list[str], merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core)
