"""Engine `endpoint`: any OpenAI-compatible server (vLLM, SGLang, llama.cpp, `transformers serve`, ...) as a writer.

A request is one HTTP call. The caller decides how many run at once: one writer serves many threads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.detokenizer import text_of
from sparsedraft.models.tokenizers.ends import end_ids, end_of_turn
from sparsedraft.text.sample import Sample
from sparsedraft.writers.conversation import REFUSED
from sparsedraft.writers.protocol.requests import Completion, Request
from sparsedraft.writers.server import reported, thoughts, trial
from sparsedraft.writers.server.finish import CUT, ENDED
from sparsedraft.writers.server.reported import Ids, Place
from sparsedraft.writers.server.server import Choice, Refused, Server

SKIPPED = (400, 413, 422)  # statuses that concern a single request
FIRST = 8  # answers after which it is decided whether the server refuses all, or gives nothing useful


class EndpointWriter:
    """The model `served` by `server`, whose tokenizer is `tokenizer`.

    Servers send text, so the token ids of an answer are the text's, encoded here. They differ from the model's where it
    wrote other tokens for the same text. `skip`: a refused request gives an empty Completion that says so; None if the
    command has no such option. Raises UserError as Server does, and for a server of another model.
    """

    name = "endpoint"

    def __init__(
        self, server: Server, served: str, tokenizer: PreTrainedTokenizerBase, skip: bool | None = None
    ) -> None:
        self.server, self.served, self.tokenizer, self.skip = server, served, tokenizer, skip
        self.end = end_of_turn(tokenizer)
        self.eos_ids = frozenset(self.end) | end_ids(Path(tokenizer.name_or_path), tokenizer)
        self._names_ids = True  # until the server refuses to
        self._by_tokens = False  # whether it must be asked for tokens to get the thoughts
        self._tried: set[tuple[Sampling, int]] = set()
        self._failed: UserError | None = None  # what the trial found
        self._trying, self._counting = Lock(), Lock()
        self._answered = self._refused = self._soft = self._hard = 0
        self._id = Ids(tokenizer)
        self._template = templates.for_server(tokenizer)
        names = sorted(server.models())
        if served not in names:
            listed = ", ".join(server.secrets.line(name, 80) for name in names[:5]) or "nothing"
            raise UserError(
                f"the server at --url {server.url} serves {listed}, not {served}: give one of its names as "
                "--served-name, or start it with the target."
            )

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, top_k_logprobs: int = 0
    ) -> Iterator[Completion]:
        """One call for each request, in their order."""
        self._try(sampling, top_k_logprobs)
        for request in requests:
            try:
                yield self._raw(request, sampling) if request.raw else self._chat(request, sampling, top_k_logprobs)
                self._answered += 1
            except Refused as error:
                yield self._left_out(request, error)

    def score(self, samples: Sequence[Sample], k: int) -> list[tuple[list[int], list[float]]]:
        """Always a UserError: servers do not score texts that they did not write."""
        raise UserError(
            "--engine endpoint gives log-probabilities of what the server writes only, not of rewritten answers: leave "
            "out --top-k-logprobs, or use --engine transformers."
        )

    def _left_out(self, request: Request, error: Refused) -> Completion:
        """The empty answer to a refused request; the error is raised where it concerns more than this request.

        A server that refuses the first FIRST requests and answers none objects to an option, not to the prompts.
        """
        if self.skip is None or error.status not in SKIPPED:
            raise error
        self._refused += 1
        if not self.skip or (self._refused >= FIRST and not self._answered):
            hint = "" if self.skip else ", or pass --skip-bad to leave out what it refuses"
            raise Refused(f"{str(error).removesuffix('.')}{hint}.", error.status) from None
        return Completion(request.id, dropped=REFUSED)

    def _options(self, request: Request, sampling: Sampling) -> tuple[dict[str, Any], dict[str, Any]]:
        """(options that every server knows, options that some know)."""
        options = {
            "model": self.served,
            "max_tokens": request.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed % 2**31,  # some servers hold it in 32 bits
        }
        return options, ({"top_k": sampling.top_k} if sampling.top_k else {})

    def _chat(self, request: Request, sampling: Sampling, k: int) -> Completion:
        options, extra = self._options(request, sampling)
        options |= {"messages": request.messages, **extra, **self._template}
        what = f"prompt {request.id}"
        asked = k or int(self._by_tokens)
        choice = self._with_logprobs(what, options, asked) if asked else self.server.chat(what, options)
        if not choice.whole:
            return self._unwhole(request, choice)
        places = reported.read(choice.logprobs)
        has_text = bool(choice.text or choice.thoughts)
        if k and has_text and not places:
            raise self._unfit("returns no log-probabilities: leave out --top-k-logprobs, or use another server")
        whole = choice
        if choice.thoughts or choice.hidden:
            whole, places = self._thought(request, choice, places, what, options)
        if whole.finish_reason == CUT and self._ended(choice, whole.text, places, what, options):
            whole = replace(whole, finish_reason=ENDED)
        output = self._output(request, whole)
        if k and has_text:
            self._count_soft(reported.add(output, places, k, self._id, self.eos_ids, self.end))
        return output

    def _with_logprobs(self, what: str, options: dict[str, Any], k: int) -> Choice:
        """A chat with log-probabilities; tokens are named by id if the server can.

        vLLM can. Other servers ignore that option, or refuse it and are asked without.
        """
        options = options | {"logprobs": True, "top_logprobs": k}
        if self._names_ids:
            try:
                return self.server.chat(what, options | {"return_tokens_as_token_ids": True})
            except Refused:
                choice = self.server.chat(what, options)
                self._names_ids = False  # the option was refused, not the prompt
                return choice
        return self.server.chat(what, options)

    def _thought(
        self, request: Request, choice: Choice, places: list[Place], what: str, options: dict[str, Any]
    ) -> tuple[Choice, list[Place]]:
        """(the choice with the thoughts in its text, before the answer; the places that are reported of that text).

        Reported tokens give the exact text, if all are reported. Else the chat template shows how thoughts are written.
        If it does not, the server is asked again, for tokens.
        """
        if text := self._all_reported(choice, places):
            return replace(choice, text=text), places
        rendered = thoughts.put_back(self.tokenizer, request.messages or (), choice.thoughts, choice.text)
        if rendered is not None and not self._lacks(choice, rendered):
            return replace(choice, text=rendered), []  # the report covers the answer only
        if not places:
            try:
                again = self._with_logprobs(what, options, 1)
            except Refused:
                again = choice
            places = reported.read(again.logprobs)
            if again.whole and (text := self._all_reported(again, places)):
                self._by_tokens = True
                return replace(again, text=text), places
        raise UserError(
            f"the server at --url {self.server.url} sends what the model thinks apart from what it answers, and "
            "neither its log-probabilities nor the chat template tell how the model writes the two: start it so that "
            "thoughts stay in the text (vLLM and SGLang: without --reasoning-parser; llama-server: --reasoning-format "
            "none)."
        )

    def _all_reported(self, choice: Choice, places: list[Place]) -> str:
        """The text of the reported tokens, if thoughts and answer are in it; else ""."""
        known = [self._id(token) for token, _ in places]
        ids = [i for i in known if i is not None]
        if not ids or len(ids) < len(known) or not choice.thoughts.strip():
            return ""
        text = text_of(self.tokenizer, [i for i in ids if i not in self.eos_ids], special=True)
        behind = text.partition(choice.thoughts.strip())[2]
        return text if (behind.strip() and choice.text.strip() in behind) or text.endswith(choice.thoughts) else ""

    def _lacks(self, choice: Choice, text: str) -> bool:
        """Whether the model wrote clearly more than `text`: some servers send a summary of the thoughts, or nothing."""
        if choice.tokens is None:
            return not choice.thoughts
        return choice.tokens > 8 + 1.1 * len(self._ids(text))

    def _ids(self, text: str) -> list[int]:
        return [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _ended(self, choice: Choice, text: str, places: list[Place], what: str, options: dict[str, Any]) -> bool:
        """Whether an answer that the server calls cut off ended itself with its last allowed token.

        Reported tokens show it. Else, if `text` has just one token less than allowed, the server is asked again with
        room for one more: an answer that had ended stays the same. (An answer that ended, but whose text has another
        number of tokens here, counts as cut off.)
        """
        if places:
            return self._id(places[-1][0]) in self.eos_ids
        allowed = options["max_tokens"]
        if choice.tokens not in (None, allowed) or len(self._ids(text)) != allowed - 1:
            return False
        try:
            again = self.server.chat(what, options | {"max_tokens": allowed + 1})
        except Refused:
            return False  # no room for one more
        return again.finish_reason == ENDED and (again.text, again.thoughts) == (choice.text, choice.thoughts)

    def _raw(self, request: Request, sampling: Sampling) -> Completion:
        options, extra = self._options(request, sampling)
        text, bos = str(request.raw), self.tokenizer.bos_token
        if bos and self.tokenizer("")["input_ids"][:1] == [self.tokenizer.bos_token_id]:
            text = text.removeprefix(bos)  # the server's tokenizer adds it
        choice = self.server.complete(f"prompt {request.id}", options | {"prompt": text, **extra})
        return self._output(request, choice) if choice.whole else self._unwhole(request, choice)

    def _unwhole(self, request: Request, choice: Choice) -> Completion:
        """The empty answer in place of one that is not entirely the model's."""
        return Completion(request.id, dropped=f"finish reason {choice.finish_reason}")

    def _output(self, request: Request, choice: Choice) -> Completion:
        """The answer in the target's tokens."""
        ids = self._ids(choice.text)
        tokens = [*ids, *self.end] if choice.finish_reason == ENDED else ids
        return Completion(request.id, tokens, choice.finish_reason, text=choice.text)

    def _count_soft(self, why: str) -> None:
        """Count an answer; `why` says why its log-probabilities cannot be used, or "".

        UserError if none of the first FIRST answers has usable ones. Single answers may lack them (part of a character
        is not always a token of the vocabulary): the result counts these.
        """
        with self._counting:
            self._soft, self._hard = self._soft + (not why), self._hard + bool(why)
            if self._hard >= FIRST and not self._soft:
                raise self._unfit(f"{why}; or leave out --top-k-logprobs")

    def _try(self, sampling: Sampling, k: int) -> None:
        """UserError, before the first row, for a server that gives other things than it is asked for: see trial.py."""
        with self._trying:  # other threads wait for the first one's result
            if self._failed is None and (sampling, k) not in self._tried:
                self._tried.add((sampling, k))
                try:
                    if why := trial.unfit(self._trial, sampling, k):
                        self._failed = self._unfit(why)
                except UserError as error:
                    self._failed = error
            if self._failed is not None:
                raise self._failed

    def _trial(self, question: str, more: dict[str, Any], k: int) -> Choice | None:
        """The answer to a trial question, greedy unless `more` says otherwise; None if the server refuses it."""
        options = {"model": self.served, "temperature": 0.0, "messages": [{"role": "user", "content": question}]}
        options |= {**more, **self._template}
        try:
            what = "a question that it is tried with"
            return self._with_logprobs(what, options, k) if k else self.server.chat(what, options)
        except Refused:
            return None

    def _unfit(self, why: str) -> UserError:
        return UserError(f"the server at --url {self.server.url} {why}.")
