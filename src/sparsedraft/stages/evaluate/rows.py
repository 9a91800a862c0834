"""One drafter over the target's answers: a row per sequence with α, a histogram for each K, and what the loop took."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsedraft.base.console import console, track
from sparsedraft.speculate.drafters.model import ModelDrafter
from sparsedraft.speculate.pair import Pair, PromptPair
from sparsedraft.speculate.policy.learned import Learned
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.speculate.policy.protocol import Policy
from sparsedraft.stages.evaluate import loop
from sparsedraft.stages.evaluate.memo import TargetLogits
from sparsedraft.stages.evaluate.options import Options
from sparsedraft.stages.evaluate.servertarget import ServerTarget
from sparsedraft.stages.evaluate.simulation import Acceptance, acceptance, acceptance_of, expected, simulate
from sparsedraft.stages.evaluate.transcript import Transcript, chains, shorter
from sparsedraft.writers.conversation import Answer

READ = 4096  # prompt tokens in one pass: activations take memory
IN_TEXT, IN_LOOP = "the target's text", "drafts in the loop"  # what a row's α is the acceptance of


def alpha_of(pair: Pair, options: Options) -> str:
    """What α is taken over; across tokenizers mostly the drafts that a loop compared, over all K's."""
    chained = options.simulate and pair.route == "intersection" and not options.sampling.greedy
    return IN_TEXT if pair.route == "same" or chained else IN_LOOP


def allowed(answer: Answer) -> int:
    """How many tokens could have been written; encoded again, a server's text has a few more or fewer than it wrote."""
    n = len(answer.answer_ids)
    return n if answer.finish_reason == "length" else max(n, answer.max_new_tokens)


def batches(answers: Sequence[Answer], size: int) -> Iterator[list[Answer]]:
    """At most `size` answers at once, whose prompts are read in one pass, and hold at most READ tokens."""
    batch: list[Answer] = []
    for answer in answers:
        tokens = sum(len(other.prompt_ids) for other in batch) + len(answer.prompt_ids)
        if batch and (len(batch) == size or tokens > READ):
            yield batch
            batch = []
        batch.append(answer)
    if batch:
        yield batch


def realised(drafts: dict[str, dict[str, Any]]) -> float:
    """Accepted of the drafts that were compared, over all K's: what stands for α where tokenizers differ."""
    accepted, compared = (sum(found[key] for found in drafts.values()) for key in ("accepted", "compared"))
    return accepted / compared if compared else 0.0


@dataclass(frozen=True)
class Measurement:
    """`pair`'s drafter over answers, by K's and policies `ks`; `theirs` is what the target thinks of these."""

    name: str
    pair: Pair
    ks: Sequence[int | str]
    options: Options
    theirs: TargetLogits
    work: Path  # what an interrupted evaluation left

    def rows(self, answers: Sequence[Answer], done: Container[str] = ()) -> Iterator[dict[str, Any]]:
        """A row per sequence that is not `done`; `loops` and `alone` where the real loop ran. RuntimeError where its
        text is wrong.

        A row is the same whatever else is done: what transformers reads at once, which its last bits depend on, is
        chosen from all `answers`.
        """
        todo = [answer for answer in answers if answer.id not in done]
        if not todo:
            return
        self._warn_of_full_contexts(todo)
        told = self.options.simulate and alpha_of(self.pair, self.options) == IN_LOOP
        with track(f"eval {self.name}", sum(len(answer.answer_ids) for answer in todo), "tokens") as tracker:
            for answer, figures in self._told(answers, done) if told else self._each(answers, done):
                tracker.advance(len(answer.answer_ids))
                yield {"drafter": self.name, **_named(answer), **figures}

    def _fresh(self) -> None:
        """Take up nothing of the answer before, which a resumed evaluation has not read; the native engine may: its
        numbers do not depend on it."""
        for side in (self.pair.target, self.pair.drafter):
            if side is not None and not side.native and not isinstance(side, ServerTarget):
                side.remembering().clear()

    def _each(self, answers: Sequence[Answer], done: Container[str]) -> Iterator[tuple[Answer, dict[str, Any]]]:
        """The figures of one answer after the other: `histograms`, `alpha`; from the real loop `loops`, `alone` and
        `reading`."""
        before = [answer.id for answer in answers if answer.id in done]
        learned = Learned(self.work, self.name, self.ks, before)  # of this drafter alone
        plain = Pair.of(self.pair.target, None, "auto", self.options.sampling)
        for answer, found in self._read(answers, done):
            alpha = None if found is None else float(found.shares.double().mean())
            if not self.options.simulate:
                reading = loop.reading(self.pair, self._asked(answer))
                # right beside, each time anew: a machine's speed moves within an evaluation
                _, alone = self._loops(plain, answer, {0: Constant(0)})
                with learned.answer(answer.id) as learning:
                    histograms, loops = self._loops(self.pair, answer, learning)
                alpha = realised(loops) if alpha is None else alpha
                seconds = {"loops": loops, "alone": alone["0"], "reading": reading}
                yield answer, {"histograms": histograms, **seconds, "alpha": alpha}
            elif found is not None:
                yield answer, {"histograms": self._simulated(answer, found), "alpha": alpha}
            else:
                histograms, alpha = self._chained(answer)
                yield answer, {"histograms": histograms, "alpha": alpha}

    def _told(self, answers: Sequence[Answer], done: Container[str]) -> Iterator[tuple[Answer, dict[str, Any]]]:
        """The same of a drafter whose drafts depend on where a step starts: the real loop, its target's part known.

        Several answers are decoded at once where that cannot change a drafter's logits.
        """
        drafter = self.pair.drafter
        todo = [answer for answer in answers if answer.id not in done]
        size = self.options.batch_size if drafter is not None and drafter.native else 1
        for room in sorted({allowed(answer) for answer in todo}):
            for batch in batches([answer for answer in todo if allowed(answer) == room], size):
                self._fresh()
                asked = [self._asked(answer) for answer in batch]
                seeds, by_k = [answer.seed for answer in batch], {}
                for k in self.options.numbers:
                    known = Transcript.of(self.pair.target, batch)
                    by_k[str(k)] = loop.replay(self.pair, asked, k, self.options.sampling, room, seeds, known)
                for i, answer in enumerate(batch):
                    found = {k: of_k[i] for k, of_k in by_k.items()}
                    if any(tokens != list(answer.answer_ids) for tokens, _, _ in found.values()):
                        raise RuntimeError(f"{answer.id}: a known text was not decoded as it stands")
                    histograms = {k: histogram for k, (_, histogram, _) in found.items()}
                    yield answer, {
                        "histograms": histograms, "alpha": realised({k: counts for k, (*_, counts) in found.items()})
                    }  # fmt: skip

    def _read(self, answers: Sequence[Answer], done: Container[str]) -> Iterator[tuple[Answer, Acceptance | None]]:
        """Each answer with its acceptance, in no fixed order; None where the drafter does not read these tokens."""
        target, drafter, sampling = self.pair.target, self.pair.drafter, self.options.sampling
        todo = [answer for answer in answers if answer.id not in done]
        if self.pair.route != "same" or drafter is None:
            for answer in todo:
                self._fresh()
                yield answer, None
        elif (drafter.native and (target.native or sampling.greedy)) or self._stepwise:
            for answer in todo:  # by engines that remember what they read when the loop then asks for the same
                self._fresh()
                p = None if sampling.greedy else self.theirs.after
                read = (drafter.remembering(), answer.prompt_ids, answer.answer_ids)
                yield answer, acceptance_of(*read, p, sampling, self.pair.vocabulary, drafter.known)
        else:
            pairs = [(answer.prompt_ids, answer.answer_ids) for answer in answers]
            wanted = {place for place, answer in enumerate(answers) if answer.id not in done}
            model = None if sampling.greedy else target.model  # greedy α needs no second look at the target
            compared = acceptance(
                drafter.model, pairs, model, sampling, self.pair.vocabulary, self.theirs.packed, wanted
            )
            yield from ((answers[index], found) for index, found in compared)

    @property
    def _stepwise(self) -> bool:
        """Whether a model has to be asked as the loop does, since a pass over a whole text says something else."""
        drafter, target = self.pair.drafter, self.pair.target
        return (drafter is not None and not drafter.keeps_prefixes) or not (
            self.options.sampling.greedy or target.keeps_prefixes
        )

    def _simulated(self, answer: Answer, found: Acceptance) -> dict[str, Any]:
        """Histograms by K: exact where decoding is greedy, expected where it samples."""
        its = self.pair.drafter.context if self.pair.drafter else None
        room = (self._room(answer), None if its is None else its - len(answer.prompt_ids))
        if self.options.sampling.greedy:
            return {str(k): simulate(found.kept > 0.5, int(k), *room).to_dict() for k in self.ks}
        return {str(k): expected(found.kept, int(k), *room).to_dict() for k in self.ks}

    def _chained(self, answer: Answer) -> tuple[dict[str, Any], float]:
        """(expected histograms by K, α) of a drafter that samples from a part of the target's vocabulary."""
        asked = self._asked(answer)
        sampling, most = self.options.sampling, max(self.options.numbers)
        drafter = self.pair.decoder([asked], Constant(most), sampling, again=True).drafter
        assert isinstance(drafter, ModelDrafter)
        shares, steps = chains(
            drafter, self.theirs.after, answer.prompt_ids, answer.answer_ids, most, self._room(answer), sampling
        )  # fmt: skip
        histograms = {str(k): shorter(steps, k).to_dict() for k in self.options.numbers}
        return histograms, float(shares.double().mean())

    def _asked(self, answer: Answer) -> PromptPair:
        return self.pair.prompted(list(answer.prompt_ids), answer.messages[:-1])

    def _room(self, answer: Answer) -> int:
        """Tokens that the loop may write."""
        own, wanted = self.pair.target.context, allowed(answer)
        return wanted if own is None else max(len(answer.answer_ids), min(wanted, own - len(answer.prompt_ids)))

    def _loops(self, pair: Pair, answer: Answer, learning: dict[Any, Policy]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Histograms and measures of the real loop on one sequence; greedy, its output must be the target's."""
        asked = pair.prompted(list(answer.prompt_ids), answer.messages[:-1])
        histograms, loops = {}, {}
        for k, policy in learning.items():
            tokens, histograms[str(k)], loops[str(k)] = loop.run(
                pair, asked, policy, self.options.sampling, allowed(answer), answer.seed,
                self.options.tree if k else 1, k if isinstance(k, int) else 0,
            )  # fmt: skip
            same = tokens == list(answer.answer_ids)
            exact = self.options.temperature == 0 and self.options.dtype == "float32"
            if not same and exact and answer.min_gap > 1e-3:
                raise RuntimeError(
                    f"{answer.id}: speculative output differs from the target's, and no near-tie explains it"
                )
            loops[str(k)]["same"] = same
        return histograms, loops

    def _warn_of_full_contexts(self, todo: Sequence[Answer]) -> None:
        context = None if self.pair.drafter is None else self.pair.drafter.context
        if context is None:
            return
        if full := sum(len(self._asked(answer).drafter) >= context for answer in todo):
            console.print(
                f"{self.name}: {full} of {len(todo)} prompts fill the drafter's context of {context} tokens: it drafts "
                "nothing for them, and they count as such."
            )


def _named(answer: Answer) -> dict[str, Any]:
    return {
        "id": answer.id,
        "prompt": answer.prompt_id,
        "category": answer.category,
        "tokens": len(answer.answer_ids),
    }
