"""A target and its drafter: how drafts cross from one tokenizer to the other, and decoders for given prompts."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from transformers import PreTrainedTokenizerBase

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models.names import LOOKUP
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.detokenizer import text_of
from sparsedraft.models.tokenizers.vocab import same_tokens, surfaces
from sparsedraft.native.threads import single_thread
from sparsedraft.speculate.drafters.lookup import PromptLookup
from sparsedraft.speculate.drafters.mixed import MixedDrafter
from sparsedraft.speculate.drafters.parallel import model_drafter
from sparsedraft.speculate.drafters.vocabulary import VocabularyMap
from sparsedraft.speculate.drafters.window import Window, left_of
from sparsedraft.speculate.loop.decode import Decoder
from sparsedraft.speculate.loop.drafter import Drafter
from sparsedraft.speculate.loop.joins import OpenDecoder
from sparsedraft.speculate.loop.sequence import TokenSequence
from sparsedraft.speculate.loop.stops import Stops
from sparsedraft.speculate.policy.policies import Confidence
from sparsedraft.speculate.policy.protocol import Policy, SourcePolicy
from sparsedraft.speculate.policy.sources import WithLookup
from sparsedraft.speculate.tokenizers import uag
from sparsedraft.speculate.tokenizers.realign import RealignDrafter
from sparsedraft.speculate.trees.drafter import TreeDrafter
from sparsedraft.writers.loaded import LoadedModel
from sparsedraft.writers.protocol.backend import Backend, TreeBackend

UAG = ("auto", "realign", "intersection", "off")


def check_route(route: str) -> None:
    """UserError unless `route` is one of UAG."""
    if route not in UAG:
        raise UserError(f"--uag {route} is not known: choose one of {', '.join(UAG)}.")


def check_way(way: str, mask_token: int | None) -> None:
    """UserError where `way` is "parallel" and the drafter has no mask token."""
    if way == "parallel" and mask_token is None:
        raise UserError(
            "--drafting parallel needs a drafter that was trained for it (finetune --objective parallel), whose "
            "config.json names a mask token: give one, or leave it out."
        )


@dataclass(frozen=True)
class PromptPair:
    """A prompt as the target and as the drafter read it."""

    target: list[int]
    drafter: list[int]


@dataclass(frozen=True)
class Pair:
    """A target, its drafter, and how drafts get from one to the other.

    `route` is "none" (no drafter), "lookup", "same" (one tokenizer), "realign" or "intersection"; `why` is the reason.
    `drafter_temperature` multiplies the sampling temperature where the drafter draws from a distribution.
    `window`: what the drafter reads of a long text; None is all of it.
    `lookup`: look-up drafts beside the drafter.
    `mask_token`: the drafter reads it in the place of drafts and writes them in one pass; None: token by token.
    `spelling`: the tokenizers of both for texts whose special tokens are text; None: the models' own. See `shared`.
    """

    target: LoadedModel
    drafter: LoadedModel | None
    route: str
    why: str
    vocabulary: VocabularyMap | None = None
    drafter_temperature: float = 1.0
    window: Window | None = None
    lookup: bool = False
    mask_token: int | None = None
    spelling: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase] | None = None

    @classmethod
    def of(
        cls,
        target: LoadedModel,
        drafter: LoadedModel | str | None,
        route: str,
        sampling: Sampling,
        verifies: bool = True,
        drafter_temperature: float | None = None,
    ) -> "Pair":
        """Choose the route between the two models. `drafter_temperature` None: the one that the drafter has learned.

        A drafter that can draft in parallel does so where the route allows it (see `drafting_by`).

        UserError for tokenizers without a route, or with another one where `route` is "off"; for a model that cannot
        draft; and, where the target itself `verifies`, for a target that cannot.
        """
        check_route(route)
        if drafter is not None and verifies:
            target.check_takes_back("verify drafts: leave out the drafter")
        if isinstance(drafter, LoadedModel):
            drafter.check_takes_back("draft: choose another drafter")
        if not isinstance(drafter, LoadedModel):
            return cls(target, None, LOOKUP if drafter else "none", "")
        factor = drafter.temperature if drafter_temperature is None else drafter_temperature
        if same_tokens(target.tokenizer, drafter.tokenizer):
            common = min(target.width, drafter.width)
            ids = torch.arange(common)
            padded = VocabularyMap(ids, ids, target.width) if target.width != drafter.width else None
            return cls(target, drafter, "same", "one tokenizer", padded, factor, mask_token=drafter.mask_token)
        if route != "off":
            uag.require_offsets(target.tokenizer, drafter.tokenizer)
        p, q = surfaces(target.tokenizer), surfaces(drafter.tokenizer)
        overlap = len(p.keys() & q.keys())
        route, why = uag.choose(route, sampling.greedy, target.tokenizer, drafter.tokenizer, overlap)
        if route == "realign":
            return cls(target, drafter, route, why)
        ends = (target.end_of_turn(), drafter.end_of_turn())
        shared = uag.vocabulary_map(p, q, target.width, drafter.width, ends)
        return cls(target, drafter, route, why, shared, factor, mask_token=drafter.mask_token)

    def draws(self, sampling: Sampling) -> bool:
        """Whether the drafter draws its tokens from a distribution."""
        return not sampling.greedy and self.route in ("same", "intersection")

    def drafting(self, sampling: Sampling) -> Sampling:
        """How the drafter's distribution is made of its logits, where the target's is by `sampling`."""
        return sampling.tempered(self.drafter_temperature)

    def reading(self, size: int | None, sinks: int | None) -> "Pair":
        """The same pair with the window of --drafter-window and --drafter-sinks; None: the drafter's own.

        UserError for a window that is not larger than its sinks.
        """
        own = None if self.drafter is None else self.drafter.window
        return replace(self, window=Window.of_options(size, sinks, own))

    def shared(self) -> "Pair":
        """The same pair for several threads, some of which decode. Whether special tokens are text is a setting that a
        tokenizer keeps, so what crosses tokenizers needs its own: beside it, a chat's prompt would be read as text."""
        if self.drafter is None or self.route not in ("realign", "intersection"):
            return self
        return replace(self, spelling=(deepcopy(self.target.tokenizer), deepcopy(self.drafter.tokenizer)))

    def with_lookup(self) -> "Pair":
        """The same pair with look-up beside the drafter. UserError where no model drafts."""
        if self.drafter is None:
            raise UserError("look-up drafts beside a model here, and there is none: name one as the drafter.")
        return replace(self, lookup=True)

    def drafting_by(self, way: str) -> "Pair":
        """The same pair that drafts "parallel", in one pass; "chain", token by token; "auto", in parallel where it can.

        UserError for "parallel" where no drafter can, or not across these tokenizers.
        """
        token = None if self.drafter is None else self.drafter.mask_token
        check_way(way, token)
        if way == "parallel" and self.route == "realign":
            raise UserError(
                "--drafting parallel cannot pass drafts as text, because a token at the seam may have to be given up: "
                "set --uag intersection, or leave it out."
            )
        return replace(self, mask_token=None if way == "chain" or self.route == "realign" else token)

    def prompt_pair(self, ids: list[int], messages: Sequence[Mapping[str, str]] | None = None) -> PromptPair:
        """The target's prompt `ids`, as both models read it. A drafter with a chat template reads `messages` by that.

        UserError for tokens that the target does not have.
        """
        if (highest := max(ids, default=0)) >= (rows := self.target.embedding_rows):
            raise UserError(
                f"the prompt holds the token {highest}, and the target's embedding has {rows} rows: its tokenizer is "
                "another model's."
            )
        if self.drafter is None or self.route == "same":
            return PromptPair(ids, ids)
        tokenizer = self.drafter.tokenizer
        if messages is not None and tokenizer.chat_template is not None:
            try:
                return PromptPair(ids, templates.chat_ids(tokenizer, [dict(m) for m in messages]))
            except UserError:  # the template does not know a role
                pass
        text = text_of(self.target.tokenizer, ids)
        return PromptPair(ids, uag.opening(self.spelling[1] if self.spelling else tokenizer, text))

    def read(self, prompt: PromptPair) -> list[int]:
        """What the drafter reads of its prompt."""
        return left_of(self.window, prompt.drafter)

    @cached_property
    def batches(self) -> bool:
        """Whether several prompts can be decoded at once."""
        return self.target.takes_masks and (self.drafter is None or self.drafter.takes_masks)

    @property
    def around(self) -> Callable[[], AbstractContextManager[None]]:
        """Makes the context of each step: torch's threads would spin on the native engine's cores."""
        return single_thread if all(model.native for model in self._models) else nullcontext

    @property
    def _models(self) -> list[LoadedModel]:
        return [self.target] if self.drafter is None else [self.target, self.drafter]

    def check_tree(self, branching: int, policy: Policy, rows: int = 1) -> None:
        """UserError where trees cannot be drafted: they need one prompt at a time, one vocabulary, and masks."""
        if self.lookup:
            raise UserError(
                f"look-up beside a drafter drafts chains, and --tree {branching} none: leave one of them out."
            )
        if self.mask_token is not None:
            raise UserError(
                f"a drafter that drafts in parallel drafts chains, and --tree {branching} none: set --drafting chain."
            )
        if isinstance(policy, Confidence):
            raise UserError(f"the policy confidence ends chains, and --tree {branching} drafts none: choose another.")
        able = all(model.takes_trees for model in self._models)
        if self.route != "same" or self.vocabulary is not None or rows > 1 or not able:
            raise UserError(
                f"--tree {branching} needs one prompt at a time, models of one tokenizer and width, and attention "
                "that takes masks, its rotary frequencies the same at every length: leave it out."
            )

    def decoder(
        self,
        prompts: Sequence[PromptPair],
        policy: Policy,
        sampling: Sampling,
        *,
        stops: Stops | None = None,
        branching: int = 1,
        keep_cache: bool = False,
        target: Backend | None = None,
    ) -> Decoder:
        """A decoder for these prompts, to be decoded in this order. `branching` > 1: draft trees, of one prompt only.

        `keep_cache`: for the same prompts several times. The models keep what they have read, and a decoder that was
        made before must not be used any more. `target` verifies instead of the pair's own target. With look-up beside
        the drafter, a policy that does not know of it decides as `WithLookup` that begins here.
        """
        if self.lookup and not isinstance(policy, SourcePolicy):
            policy = WithLookup(policy)
        able = self.batches if target is None else self.drafter is None or self.drafter.takes_masks
        if len(prompts) > 1 and not able:
            raise UserError("one of the models takes no attention masks: decode one prompt at a time.")

        def backend_of(model: LoadedModel) -> Backend:
            return model.cached_backend(len(prompts)) if keep_cache else model.backend(len(prompts))

        drafter = self._drafter(prompts, policy, sampling, branching, backend_of)
        verifying, eos_ids = target or backend_of(self.target), self.target.eos_ids
        return Decoder(verifying, drafter, policy, sampling, eos_ids, stops, around=self.around)

    def open_decoder(self, rows: int, policy: Policy, sampling: Sampling, piece: int | None = None) -> OpenDecoder:
        """A decoder that texts `join`, at most `rows` at once; they draw as `sampling` says where they say nothing.

        `piece` is that of OpenDecoder. Rows keep what they have read for the texts that come after. UserError where
        several texts cannot be read at once, or a text could not go on from what another left.
        """
        if self.lookup and not isinstance(policy, SourcePolicy):
            policy = WithLookup(policy, joins=True)
        self.check_open(rows)
        drafter = self.open_drafter(rows, policy, sampling)
        target, eos_ids = self.target.open_backend(rows), self.target.eos_ids
        return OpenDecoder(target, drafter, policy, sampling, eos_ids, around=self.around, piece=piece)

    def check_open(self, rows: int) -> None:
        """UserError where texts cannot come and go, `rows` of them at once: see `open_decoder`."""
        if (rows > 1 and not self.batches) or not all(model.keeps_prefixes for model in self._models):
            raise UserError(
                "one of the models takes no attention masks, or its rotary frequencies change with the length: texts "
                "cannot come and go, so decode one prompt at a time."
            )

    def open_drafter(self, rows: int, policy: Policy, sampling: Sampling) -> Drafter | None:
        """The drafter of texts that come and go, an OpenDrafter; with look-up beside it as `policy` says. See
        `check_open`."""
        return self._drafter([], policy, sampling, 1, lambda model: model.open_backend(rows))

    def _drafter(
        self,
        prompts: Sequence[PromptPair],
        policy: Policy,
        sampling: Sampling,
        branching: int,
        backend_of: Callable[[LoadedModel], Backend],
    ) -> Drafter | None:
        if self.drafter is None:
            return PromptLookup() if self.route == LOOKUP else None
        model = self._model_drafter(self.drafter, prompts, policy, sampling, branching, backend_of)
        if not (isinstance(policy, SourcePolicy) and self.lookup):
            return model
        return MixedDrafter(model, policy.choose, policy.worth)

    def _model_drafter(
        self,
        q: LoadedModel,
        prompts: Sequence[PromptPair],
        policy: Policy,
        sampling: Sampling,
        branching: int,
        backend_of: Callable[[LoadedModel], Backend],
    ) -> Drafter:
        p, backend = self.target, backend_of(q)
        drafting = self.drafting(sampling)
        if branching > 1:
            self.check_tree(branching, policy, len(prompts))
            return TreeDrafter(cast(TreeBackend, backend), drafting, branching, window=self.window)
        rows = q.embedding_rows
        if self.route == "same":
            wider = p.embedding_rows > rows

            def heard(sequence: TokenSequence) -> list[int]:  # a wider target may write what the drafter cannot read
                return [token if token < rows else 0 for token in sequence.tokens] if wider else sequence.tokens

            return model_drafter(
                backend,
                drafting,
                self.mask_token,
                read=lambda sequence: left_of(self.window, heard(sequence)),
                vocabulary=self.vocabulary,
                confident=policy.confident,
                heard=heard,
                factor=self.drafter_temperature,
            )
        pairs = [(prompt.target, prompt.drafter) for prompt in prompts]
        own, other = self.spelling or (p.tokenizer, q.tokenizer)
        readers = uag.Readers(own, other, pairs, rows, self.window)
        if self.vocabulary is not None:
            vocabulary, factor = self.vocabulary, self.drafter_temperature
            return uag.intersection_drafter(backend, readers, vocabulary, drafting, policy, self.mask_token, factor)
        return RealignDrafter(
            backend,
            readers,
            own,
            other,
            ends=q.eos_ids,
            eos=p.end_of_turn(),
            width=p.width,
            policy=policy,
        )
