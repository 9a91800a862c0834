"""Texts that a target writes, with or without a drafter: piece by piece, and whole."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparsedraft.base.errors import UserError
from sparsedraft.base.hashing import seed_of
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.names import LOOKUP
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.detokenizer import Detokenizer
from sparsedraft.native.model import check_prompts_fit
from sparsedraft.speculate.loop.sequence import Step
from sparsedraft.speculate.loop.stops import Stops
from sparsedraft.speculate.pair import Pair, PromptPair
from sparsedraft.speculate.policy.policies import Auto, policy_named
from sparsedraft.speculate.policy.sources import WithLookup
from sparsedraft.stages.generate.kept import KeptFile
from sparsedraft.stages.generate.measured import Measured
from sparsedraft.stages.generate.options import GenerateOptions
from sparsedraft.text import prompts
from sparsedraft.writers.loaded import LoadedModel


@dataclass(frozen=True)
class TextPiece:
    """What one step adds to one text. All pieces of a prompt, one behind the other, are its whole text."""

    prompt: int  # which prompt it answers, from 0
    text: str  # may be empty: letters that may still change come with a later piece
    drafted: int  # tokens that the drafter proposed in this step,
    accepted: int  # and how many of them the text has now
    from_drafts: str = ""  # the beginning of `text` that these wrote; the target itself wrote the rest


@dataclass
class GeneratedText:
    """A whole text, without special tokens, up to a stop string; and how it was written."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)  # with the token that ends the text, if the model ended it
    drafted: list[int] = field(default_factory=list)  # proposed tokens, step by step
    accepted: list[int] = field(default_factory=list)  # accepted tokens, step by step
    matches: list[int | None] = field(default_factory=list)  # as in `Step`, step by step
    finish_reason: str = "length"  # "eos", "stop", "length" (of max_new_tokens) or "context" (which is full)
    prompt_tokens: int = 0
    route: str = "none"  # how drafts cross tokenizers: "none", "lookup", "same", "realign" or "intersection"

    @property
    def steps(self) -> int:
        """Passes of the target."""
        return len(self.accepted)

    @property
    def by_step(self) -> list[tuple[int | None, int, int]]:
        """(match, drafted, accepted) of each step."""
        return [*zip(self.matches, self.drafted, self.accepted, strict=True)]

    @property
    def mal(self) -> float:
        """Mean accepted length: tokens of a step, the target's own included. 1.0 is plain decoding."""
        return len(self.token_ids) / max(1, self.steps)


class TextStream:
    """The text of one sequence, which grows step by step."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Stops | None) -> None:
        self.stops, self.token_ids = stops, list[int]()
        self._detokenizer, self._whole, self._length = Detokenizer(tokenizer), "", 0

    def add(self, step: Step) -> str:
        """The text that a step adds, as far as no later token can change it."""
        return "".join(self.parts(step))

    def parts(self, step: Step) -> tuple[str, str]:
        """The same in two parts: what accepted drafts add, and what the target's own token does."""
        return self._more(step.emitted[: step.accepted]), self._more(step.emitted[step.accepted :])

    def _more(self, tokens: Sequence[int]) -> str:
        if not tokens:
            return ""
        self.token_ids += tokens
        self._whole += self._detokenizer.more(self.token_ids)
        end = len(self._cut(self._whole))
        if self.stops and end == len(self._whole):
            end = max(0, end - self.stops.longest + 1)  # its last letters may begin a stop string
        return self._new(self._whole[:end])

    def rest(self) -> str:
        """The text that was held back, once the sequence has ended."""
        return self._new(self.text)

    @property
    def text(self) -> str:
        """The whole text without special tokens, up to a stop string."""
        return self._cut(self._detokenizer.text(self.token_ids))

    def _cut(self, text: str) -> str:
        return self.stops.cut(text) if self.stops else text

    def _new(self, text: str) -> str:
        """What `text` has more than was returned before."""
        new, self._length = text[self._length :], max(self._length, len(text))
        return new


class TextGenerator:
    """Writes one text for each prompt of `options`; to be used once.

    The texts are the target's own (greedy) or distributed as the target's own (temperature > 0), whatever the drafter.
    UserError for a prompt that no tokenizer takes, or that leaves the drafter's context no room.
    """

    def __init__(self, pair: Pair, options: GenerateOptions) -> None:
        self.pair, self.options = pair, options
        policy, self.sampling = policy_named(options.chosen_policy, options.k), sampling_of(options)
        if options.tree > 1:
            pair.check_tree(options.tree, policy, len(options.prompt) if pair.batches else 1)
        self._auto = policy if isinstance(policy, Auto) else None
        self.measured = Measured(WithLookup(policy) if pair.lookup else policy)
        self.prompts = [prompt_pair(pair, text, options.raw) for text in options.prompt]
        self._check_memory()
        self.stops = Stops(pair.target.tokenizer, options.stop) if options.stop else None
        self.texts = [
            GeneratedText(prompt_tokens=len(prompt.target), route=pair.route) for prompt in self.prompts
        ]  # fmt: skip

    def _check_memory(self) -> None:
        at_once = sum if self.pair.batches else max  # prompts are read together, or one by one
        lengths = {
            "target": [len(p.target) for p in self.prompts],
            "drafter": [len(self.pair.read(p)) for p in self.prompts],
        }
        models = {"target": self.pair.target, "drafter": self.pair.drafter}
        check_prompts_fit([(m.native, at_once(lengths[name])) for name, m in models.items() if m and m.native])

    def pieces(self) -> Iterator[TextPiece]:
        """The pieces of all texts as they are written. `texts` is whole when they end."""
        indices = [*range(len(self.prompts))]
        together = len(indices) == 1 or self.pair.batches
        with self._learned():
            for group in [indices] if together else [[i] for i in indices]:  # one by one without attention masks
                yield from self._decode(group)

    @contextmanager
    def _learned(self) -> Iterator[None]:
        """`auto` starts from what it learned before, and keeps what it learned in the block, also one that is left."""
        if self._auto is None:
            yield
            return
        kept = KeptFile(self.pair, self.options)
        kept.start(self._auto.meter)
        try:
            yield
        finally:
            kept.write(self._auto.meter)

    def _decode(self, group: Sequence[int]) -> Iterator[TextPiece]:
        """The pieces of these prompts, decoded at once."""
        prompts_, seed = [self.prompts[i] for i in group], self.options.seed
        seeds = [seed if len(self.prompts) == 1 else seed_of(seed, i) for i in group]
        decoder = self.pair.decoder(
            prompts_, self.measured, self.sampling, stops=self.stops, branching=self.options.tree
        )  # fmt: skip
        streams = [TextStream(self.pair.target.tokenizer, self.stops) for _ in group]
        for step in decoder.decode([prompt.target for prompt in prompts_], self.options.max_new_tokens, seeds):
            stream, index = streams[step.row], group[step.row]
            from_drafts, own = stream.parts(step)
            if step.finish_reason:
                own += stream.rest()
            self._note(self.texts[index], step, stream)
            yield TextPiece(index, from_drafts + own, len(step.drafted), step.accepted, from_drafts)

    def _note(self, text: GeneratedText, step: Step, stream: TextStream) -> None:
        text.drafted.append(len(step.drafted))
        text.accepted.append(step.accepted)
        text.matches.append(step.match)
        if step.finish_reason:
            text.text, text.token_ids, text.finish_reason = stream.text, stream.token_ids, step.finish_reason


def sampling_of(options: GenerateOptions) -> Sampling:
    """How the next token is drawn."""
    o = options
    return Sampling(o.temperature, o.top_k, o.top_p, o.min_p, o.repetition_penalty, o.verification)


def load_pair(
    options: GenerateOptions, target: LoadedModel | None = None, drafter: LoadedModel | None = None
) -> Pair:  # fmt: skip
    """The target and the drafter that `options` names, or these where they are loaded already.

    UserError for a model that cannot be loaded, and for two that do not go together.
    """
    o = options
    policy_named(o.chosen_policy, o.k)  # what cannot be is said before anything is loaded
    loading: dict[str, Any] = {
        "dtype": o.dtype, "device": o.device, "runtime": o.runtime, "cache": o.cache, "template_args": o.template_args,
    }  # fmt: skip
    if target is None:
        templates.check(checkpoint.load_tokenizer(o.target), o.template_args)
        target = LoadedModel.load(o.target, **loading)
    other: LoadedModel | str | None = drafter
    if drafter is None and o.drafter is not None:
        other = LOOKUP if o.drafter == LOOKUP else LoadedModel.load(o.drafter, **loading)
    pair = Pair.of(target, other, o.uag, sampling_of(o), drafter_temperature=o.factor)
    pair = pair.reading(o.drafter_window, o.drafter_sinks).drafting_by(o.way)
    if o.tree > 1 and pair.drafter is None:
        raise UserError(f"--tree {o.tree} needs a model that drafts: give one as --drafter, or leave it out.")
    return pair.with_lookup() if o.lookup else pair


def prompt_pair(pair: Pair, text: str, raw: bool) -> PromptPair:
    """What the user says, as both models read it; with `raw`, without a chat template."""
    if prompts.half_surrogate(text):
        raise UserError(f"--prompt {text!a:.60} is not UTF-8 text: give it in that encoding.")
    tokenizer = pair.target.tokenizer
    if raw:
        prompt = pair.prompt_pair(tokenizer(text)["input_ids"])
    else:
        if not tokenizer.chat_template:
            raise UserError(
                f"model {tokenizer.name_or_path} has no chat template: add --raw to continue the text as it is, or use "
                "an instruction-tuned model."
            )
        messages = [{"role": "user", "content": text}]
        prompt = pair.prompt_pair(templates.chat_ids(tokenizer, messages), messages)
    context, read = None if pair.drafter is None else pair.drafter.context, len(pair.read(prompt))
    if context is not None and read >= context:
        raise UserError(
            f"the drafter reads {read} tokens of the prompt, which fill its context of {context}: shorten the prompt, "
            "give a smaller --drafter-window, or leave out --drafter."
        )
    return prompt
