"""Engine `endpoint`: any OpenAI-compatible server (vLLM, SGLang, llama.cpp, `transformers serve`, ...).

A request is one HTTP call; how many are under way at once is the caller's choice (one engine serves many threads).
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparsedraft import templates
from sparsedraft.distill.server import Refused, Server
from sparsedraft.ends import ends
from sparsedraft.errors import UserError
from sparsedraft.generation import Output, Request
from sparsedraft.packing import Sample
from sparsedraft.speculate.sampling import Sampling

UNKNOWN = -1e4  # log-probability of a token at a place of which the server said nothing; exp of it is 0


class EndpointEngine:
    """The model `served` by `server`, whose tokenizer is `tokenizer`.

    Servers send text, so the token ids of an answer are the text's own, encoded again; where the model had spelt it
    otherwise they differ from what it wrote. Raises UserError, as Server does and for a server of another model.
    """

    name = "endpoint"

    def __init__(self, server: Server, served: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self.server, self.served, self.tokenizer = server, served, tokenizer
        self.end = templates.end_of_turn(tokenizer)
        self.eos_ids = frozenset(self.end) | ends(Path(tokenizer.name_or_path), tokenizer)
        self._names_ids = True  # until the server refuses to
        self._template = templates.for_server(tokenizer)
        names = sorted(server.models())
        if served not in names:
            raise UserError(
                f"the server at --url {server.url} serves {', '.join(names[:5]) or 'nothing'}, not {served}: give one "
                "of its names as --served-name, or start it with the target."
            )

    def generate(self, requests: Sequence[Request], sampling: Sampling, top_k_logprobs: int = 0) -> Iterator[Output]:
        """One call for each request, in their order."""
        for request in requests:
            yield self._raw(request, sampling) if request.raw else self._chat(request, sampling, top_k_logprobs)

    def score(self, samples: Sequence[Sample], k: int) -> list[tuple[list[int], list[float]]]:
        """No server is asked to score text that it did not write."""
        raise UserError(
            "--engine endpoint gives log-probabilities of what the server writes only, not of rewritten answers: leave "
            "out --top-k-logprobs, or use --engine transformers."
        )

    def _options(self, request: Request, sampling: Sampling) -> tuple[dict[str, Any], dict[str, Any]]:
        """(what every server knows, what some know more)."""
        options = {
            "model": self.served,
            "max_tokens": request.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed % 2**31,  # some servers hold it in 32 bits
        }
        return options, ({"top_k": sampling.top_k} if sampling.top_k else {})

    def _chat(self, request: Request, sampling: Sampling, k: int) -> Output:
        options, extra = self._options(request, sampling)
        options, extra = options | {"messages": request.messages}, extra | self._template
        what = f"prompt {request.id}"
        if not k:
            return self._output(request, self.server.chat(what, options, extra))
        choice = self._chat_with_logprobs(what, options | {"logprobs": True, "top_logprobs": k}, extra)
        output = self._output(request, choice)
        self._add_logprobs(output, choice["logprobs"], k)
        return output

    def _chat_with_logprobs(self, what: str, options: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        """vLLM names tokens by id if it is asked to; others ignore that, or refuse it and are asked without."""
        if self._names_ids:
            try:
                return self.server.chat(what, options, extra | {"return_tokens_as_token_ids": True})
            except Refused:
                choice = self.server.chat(what, options, extra)
                self._names_ids = False  # it was that, and not the prompt
                return choice
        return self.server.chat(what, options, extra)

    def _raw(self, request: Request, sampling: Sampling) -> Output:
        options, extra = self._options(request, sampling)
        text, bos = str(request.raw), self.tokenizer.bos_token
        if bos and self.tokenizer("")["input_ids"][:1] == [self.tokenizer.bos_token_id]:
            text = text.removeprefix(bos)  # the server's tokenizer puts it there, too
        choice = self.server.complete(f"prompt {request.id}", options | {"prompt": text}, extra)
        return self._output(request, choice)

    def _output(self, request: Request, choice: dict[str, Any]) -> Output:
        """The answer in the target's tokens."""
        ids = [int(i) for i in self.tokenizer(choice["text"], add_special_tokens=False)["input_ids"]]
        ended = choice["finish_reason"] == "stop"
        written = [*ids, *self.end] if ended else ids
        return Output(request.id, written, "eos" if ended else "length", text=choice["text"])

    def _add_logprobs(self, output: Output, logprobs: Any, k: int) -> None:
        """The server's own tokens and log-probabilities in place of the re-encoded ones.

        Nothing is added where one of its tokens has no id of its own in the vocabulary (part of a character, say). The
        end-of-turn token, if the server does not report on it, counts as certain: it was written, and a divergence
        towards "any other token" would unlearn it.
        """
        reported = _reported(logprobs)
        if not reported:
            raise UserError(
                f"the server at --url {self.server.url} returns no log-probabilities: leave out --top-k-logprobs, or "
                "use another server."
            )
        ids = [self._id(token) for token, _ in reported]
        best = [[(self._id(token), p) for token, p in found[:k]] for _, found in reported]
        if None in ids or any(len(found) < k or None in (i for i, _ in found) for found in best):
            return
        output.topk_ids = [[int(i) for i, _ in found] for found in best]  # type: ignore[arg-type]
        output.topk_logprobs = [[max(p, UNKNOWN) for _, p in found] for found in best]
        output.token_ids = [int(i) for i in ids if i is not None]
        if output.finish_reason == "eos" and output.token_ids[-1] not in self.eos_ids and self.end:
            output.token_ids.append(self.end[0])
            others = [i for i in range(k + 1) if i != self.end[0]]
            output.topk_ids.append([self.end[0], *others][:k])
            output.topk_logprobs.append([0.0, *[UNKNOWN] * k][:k])

    def _id(self, token: str) -> int | None:
        """The id of a token as the server writes it: "token_id:17", or the text that it stands for."""
        if (number := token.removeprefix("token_id:")) != token and number.isdecimal():
            return int(number)
        return self._ids_by_text.get(token)

    @cached_property
    def _ids_by_text(self) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for i in range(len(self.tokenizer)):
            text = str(self.tokenizer.decode([i]))
            found[text] = None if text in found else i  # two of one text cannot be told apart
        return found


def _reported(logprobs: Any) -> list[tuple[str, list[tuple[str, float]]]]:
    """(token, the likeliest and their log-probabilities) at each place; [] where the server reports none.

    The likeliest come first: some servers put the token that was drawn there, however likely.
    """
    try:
        places = [
            (str(place["token"]), [(str(t["token"]), float(t["logprob"])) for t in place["top_logprobs"]])
            for place in logprobs["content"]
        ]
    except (LookupError, TypeError, ValueError):
        return []
    return [(token, sorted(found, key=lambda pair: -pair[1])) for token, found in places]
