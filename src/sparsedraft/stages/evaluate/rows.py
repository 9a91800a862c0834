"""One drafter over the target's answers: a row per answer, with α, a histogram for each K, and the loop's seconds.

A row is measured in one of four ways: in the real loop; or simulated from one pass over the text, from the chains of
drafts that start at each place of it, or by replaying the text through the loop.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sparsedraft.base.console import console, track
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.pair import Pair, PromptPair
from sparsedraft.speculate.policy.learned import Learned
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.speculate.policy.protocol import Policy
from sparsedraft.stages.evaluate import loop
from sparsedraft.stages.evaluate.memo import TargetLogits
from sparsedraft.stages.evaluate.options import EvaluateOptions
from sparsedraft.stages.evaluate.servertarget import ServerTarget
from sparsedraft.stages.evaluate.simulation import Acceptance, acceptance, acceptance_of, expected, simulate
from sparsedraft.stages.evaluate.transcript import Transcript, chains, shorter
from sparsedraft.writers.conversation import Answer

READ = 4096  # prompt tokens in one pass: activations take memory
CLEAR_GAP = 1e-3  # of the two best logits: above it, float32 arithmetic of any machine chooses the same token
IN_TEXT, IN_LOOP = "the target's text", "drafts in the loop"  # what a row's α is the acceptance of


def alpha_of(pair: Pair, options: EvaluateOptions) -> str:
    """What α is the acceptance of: the target's text, or (mostly across tokenizers) the loop's drafts, over all K's."""
    q_known = pair.route == "intersection" or (pair.route == "same" and not _reads_text(pair))
    by_chains = options.simulate and q_known and not options.sampling.greedy
    return IN_TEXT if _reads_text(pair) or by_chains else IN_LOOP


def _reads_text(pair: Pair) -> bool:
    """Whether the drafter reads the target's tokens from front to back, so that one pass tells what it drafts.

    A window moves from step to step, a head that follows the text grows, and mask tokens are no tokens of the target.
    """
    native = pair.drafter.native if pair.drafter else None
    moves = pair.window is not None or pair.mask_token is not None or (native and native.head_base)
    return pair.route == "same" and not moves


def allowed(answer: Answer) -> int:
    """How many tokens the answer could have had.

    A server's text, encoded here, may have a few tokens more or fewer than the server wrote.
    """
    n = len(answer.answer_ids)
    return n if answer.finish_reason == "length" else max(n, answer.max_new_tokens)


def batches(answers: Sequence[Answer], size: int) -> Iterator[list[Answer]]:
    """The answers in batches of at most `size`, whose prompts have at most READ tokens together."""
    batch: list[Answer] = []
    for answer in answers:
        tokens = sum(len(other.prompt_ids) for other in batch) + len(answer.prompt_ids)
        if batch and (len(batch) == size or tokens > READ):
            yield batch
            batch = []
        batch.append(answer)
    if batch:
        yield batch


def compared_share(drafts: dict[str, dict[str, Any]]) -> float:
    """Accepted drafts / compared drafts, over all K's: this stands for α where the tokenizers differ."""
    accepted, compared = (sum(counts[key] for counts in drafts.values()) for key in ("accepted", "compared"))
    return accepted / compared if compared else 0.0


@dataclass(frozen=True)
class Measurement:
    """Measures the drafter of `pair` on answers of its target, by the K's and policies `ks`."""

    name: str
    pair: Pair
    ks: Sequence[int | str]
    options: EvaluateOptions
    target_logits: TargetLogits
    work: Path  # the folder of the evaluation, with what an interrupted one left

    def rows(self, answers: Sequence[Answer], done: Container[str] = ()) -> Iterator[dict[str, Any]]:
        """A row for each answer whose id is not in `done`; `loops` and `alone` where the real loop ran.

        A row does not depend on which others are done: transformers reads several answers at once, which shows in the
        last bits of a logit, so these batches are chosen from all `answers`. RuntimeError where the loop's text is not
        the target's and must be.
        """
        todo = [answer for answer in answers if answer.id not in done]
        if not todo:
            return
        self._warn_of_full_contexts(todo)
        measure = self._by_loop if not self.options.simulate else self._by_text
        if self.options.simulate and alpha_of(self.pair, self.options) == IN_LOOP:
            measure = self._by_replay
        with track(f"eval {self.name}", sum(len(answer.answer_ids) for answer in todo), "tokens") as tracker:
            for answer, figures in measure(answers, done):
                tracker.advance(len(answer.answer_ids))
                yield {"drafter": self.name, **_identity(answer), **figures}

    def _by_loop(self, answers: Sequence[Answer], done: Container[str]) -> Iterator[tuple[Answer, dict[str, Any]]]:
        """The real loop on one answer after the other: `histograms`, `loops`, `alone`, `reading` and `alpha`."""
        earlier = [answer.id for answer in answers if answer.id in done]
        learned = Learned(self.work, self.name, self.ks, earlier, self.pair.lookup)
        plain = Pair.of(self.pair.target, None, "auto", self.options.sampling)
        for answer, acceptances in self._acceptances(answers, done):
            reading = loop.reading(self.pair, self._prompts(answer))
            # the target alone is timed right beside each answer: a machine's speed moves within an evaluation
            _, alone = self._run_loop(plain, answer, {0: Constant(0)})
            with learned.answer(answer.id) as learning:
                histograms, loops = self._run_loop(self.pair, answer, learning)
            alpha = compared_share(loops) if acceptances is None else _mean(acceptances.shares)
            seconds = {"loops": loops, "alone": alone["0"], "reading": reading}
            yield answer, {"histograms": histograms, **seconds, "alpha": alpha}

    def _by_text(self, answers: Sequence[Answer], done: Container[str]) -> Iterator[tuple[Answer, dict[str, Any]]]:
        """`histograms` and `alpha` of one answer after the other, from the drafter's distributions along its text."""
        for answer, acceptances in self._acceptances(answers, done):
            if acceptances is None:
                histograms, alpha = self._from_chains(answer)
            else:
                histograms, alpha = self._from_text(answer, acceptances), _mean(acceptances.shares)
            yield answer, {"histograms": histograms, "alpha": alpha}

    def _by_replay(self, answers: Sequence[Answer], done: Container[str]) -> Iterator[tuple[Answer, dict[str, Any]]]:
        """`histograms` and `alpha` of a drafter whose drafts depend on where a step starts.

        The real loop decodes the known text, which takes the target's place. Several answers are decoded at once where
        that cannot change the drafter's logits.
        """
        drafter = self.pair.drafter
        todo = [answer for answer in answers if answer.id not in done]
        size = self.options.batch_size if drafter is not None and drafter.native else 1
        for room in sorted({allowed(answer) for answer in todo}):
            for batch in batches([answer for answer in todo if allowed(answer) == room], size):
                self._forget_prefixes()
                prompts, seeds = [self._prompts(answer) for answer in batch], [answer.seed for answer in batch]
                by_k = {}
                for k in self.options.numbers:
                    transcript = Transcript.of(self.pair.target, batch)
                    by_k[str(k)] = loop.replay(self.pair, prompts, k, self.options.sampling, room, seeds, transcript)
                for i, answer in enumerate(batch):
                    replays = {k: of_k[i] for k, of_k in by_k.items()}
                    if any(tokens != list(answer.answer_ids) for tokens, _, _ in replays.values()):
                        raise RuntimeError(f"{answer.id}: a known text was not decoded as it stands")
                    histograms = {k: histogram for k, (_, histogram, _) in replays.items()}
                    alpha = compared_share({k: counts for k, (*_, counts) in replays.items()})
                    yield answer, {"histograms": histograms, "alpha": alpha}

    def _acceptances(
        self, answers: Sequence[Answer], done: Container[str]
    ) -> Iterator[tuple[Answer, Acceptance | None]]:
        """Each answer with its acceptance, in no fixed order; None where the drafter does not read these tokens."""
        target, drafter, sampling = self.pair.target, self.pair.drafter, self.options.sampling
        drafting = self.pair.drafting(sampling)
        todo = [answer for answer in answers if answer.id not in done]
        if not _reads_text(self.pair) or drafter is None:
            for answer in todo:
                self._forget_prefixes()
                yield answer, None
        elif (drafter.native and (target.native or sampling.greedy)) or self._stepwise:
            for answer in todo:  # the backend remembers the text, which the loop then reads
                self._forget_prefixes()
                p = None if sampling.greedy else self.target_logits.after
                text = (drafter.cached_backend(), answer.prompt_ids, answer.answer_ids)
                yield answer, acceptance_of(*text, p, sampling, self.pair.vocabulary, drafter.embedding_rows, drafting)
        else:
            pairs = [(answer.prompt_ids, answer.answer_ids) for answer in answers]
            places = {place for place, answer in enumerate(answers) if answer.id not in done}
            model = None if sampling.greedy else target.model  # greedy α needs the target's text only
            packed = self.target_logits.packed
            by_place = acceptance(drafter.model, pairs, model, sampling, self.pair.vocabulary, packed, places, drafting)
            yield from ((answers[place], acceptances) for place, acceptances in by_place)

    @property
    def _stepwise(self) -> bool:
        """Whether a model's logits after a prefix differ from those in a pass over the whole text (chunked models)."""
        drafter, target = self.pair.drafter, self.pair.target
        return (drafter is not None and not drafter.keeps_prefixes) or not (
            self.options.sampling.greedy or target.keeps_prefixes
        )

    def _forget_prefixes(self) -> None:
        """Let transformers' models forget the answer before, which a resumed evaluation has not read.

        The native engine's numbers do not depend on what it remembers, so it keeps that.
        """
        for side in (self.pair.target, self.pair.drafter):
            if side is not None and not side.native and not isinstance(side, ServerTarget):
                side.cached_backend().clear()

    def _from_text(self, answer: Answer, acceptances: Acceptance) -> dict[str, Any]:
        """Histograms by K: exact where decoding is greedy, expected where it samples."""
        context = self.pair.drafter.context if self.pair.drafter else None
        room = (self._room(answer), None if context is None else context - len(answer.prompt_ids))
        if self.options.sampling.greedy:
            return {str(k): simulate(acceptances.ratios > 0.5, int(k), *room).to_dict() for k in self.ks}
        how = self.options.verification
        return {str(k): expected(acceptances.ratios, int(k), *room, verification=how).to_dict() for k in self.ks}

    def _from_chains(self, answer: Answer) -> tuple[dict[str, Any], float]:
        """(expected histograms by K, α) of a drafter that samples, and reads other tokens than the target."""
        sampling, longest = self.options.sampling, max(self.options.numbers)
        drafter = self.pair.decoder([self._prompts(answer)], Constant(longest), sampling, keep_cache=True).drafter
        assert isinstance(drafter, ModelDrafter)
        text = (answer.prompt_ids, answer.answer_ids)
        shares, steps = chains(drafter, self.target_logits.after, *text, longest, self._room(answer), sampling)
        return {str(k): shorter(steps, k).to_dict() for k in self.options.numbers}, _mean(shares)

    def _prompts(self, answer: Answer) -> PromptPair:
        return self.pair.prompt_pair(list(answer.prompt_ids), answer.messages[:-1])

    def _room(self, answer: Answer) -> int:
        """Tokens that the loop may write."""
        context, most = self.pair.target.context, allowed(answer)
        return most if context is None else max(len(answer.answer_ids), min(most, context - len(answer.prompt_ids)))

    def _run_loop(self, pair: Pair, answer: Answer, by_k: dict[Any, Policy]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(histograms, measures) of the real loop on one answer, by K or policy; greedily it must write the answer."""
        prompts = pair.prompt_pair(list(answer.prompt_ids), answer.messages[:-1])
        histograms, loops = {}, {}
        for k, policy in by_k.items():
            tokens, histograms[str(k)], loops[str(k)] = loop.run(
                pair, prompts, policy, self.options.sampling, allowed(answer), answer.seed,
                self.options.tree if k else 1, k if isinstance(k, int) else 0,
            )  # fmt: skip
            same = tokens == list(answer.answer_ids)
            exact = self.options.temperature == 0 and self.options.dtype == "float32"
            if not same and exact and answer.min_gap > CLEAR_GAP:
                raise RuntimeError(
                    f"{answer.id}: speculative output differs from the target's, and no near-tie explains it"
                )
            loops[str(k)]["same"] = same
        return histograms, loops

    def _warn_of_full_contexts(self, todo: Sequence[Answer]) -> None:
        context = None if self.pair.drafter is None else self.pair.drafter.context
        if context is None:
            return
        if full := sum(len(self.pair.read(self._prompts(answer))) >= context for answer in todo):
            console.print(
                f"{self.name}: {full} of {len(todo)} prompts fill the drafter's context of {context} tokens: it drafts "
                "nothing for them, and they count as such."
            )


def _mean(shares: Tensor) -> float:
    """α: the mean over the places of a text."""
    return float(shares.double().mean())


def _identity(answer: Answer) -> dict[str, Any]:
    return {
        "id": answer.id,
        "prompt": answer.prompt_id,
        "category": answer.category,
        "tokens": len(answer.answer_ids),
    }
