"""The decoding loop: its own share of the time, and transformers' assisted generation on the same pair, prompts and K.

    python benchmarks/speculation.py [TARGET [DRAFTER]] [--prompts FILE] [--limit N] [--k K] [--new-tokens N]

Our loop runs on the same transformers models, in float32, and once more on the native engine, as `sparsedraft` has it
by itself. Greedy. All must write the same text, or part where the target's two best logits lie closer than 1e-3 (sums
have another order where another number of tokens is read), and the target must need the same number of passes. Seconds
are those of whole answers, the prompts' reading included. About 5 minutes for the default pair.
"""

import argparse
import functools
import itertools
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from common import MODEL, parser, run
from peers import assisted
from record import Table
from sparsedraft.base.console import console
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.ends import end_ids
from sparsedraft.native.loading import load
from sparsedraft.speculate.loop.decode import generate
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.text import prompts
from sparsedraft.writers.loaded import LoadedModel

TIE = 1e-3  # logits this close come out in either order


class Clocked:
    """Counts the calls of a model's forward, and their seconds."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.calls, self.seconds, forward = 0, 0.0, model.forward

        @functools.wraps(forward)  # generate looks at its signature
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            out = forward(*args, **kwargs)
            self.calls += 1
            self.seconds += time.perf_counter() - start
            return out

        model.forward = timed


@dataclass
class Run:
    """What one way of decoding wrote, and took for it, over all prompts."""

    texts: list[list[int]] = field(default_factory=list)
    seconds: float = 0.0
    passes: int = 0  # of the target
    inside: float = 0.0  # seconds inside of the models' forward passes

    @property
    def tokens(self) -> int:
        return sum(map(len, self.texts))


class Comparison:
    """A target and a drafter, decoded by transformers and by us, prompt after prompt."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.k, self.length = options.k, options.new_tokens
        self.target, self.drafter = _loaded(options.target), _loaded(options.drafter)
        tokenizers = self.target.tokenizer, self.drafter.tokenizer
        same = tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
        self.tokenizers = {} if same else dict(zip(("tokenizer", "assistant_tokenizer"), tokenizers, strict=True))
        self.pair = Pair.of(self.target, self.drafter, options.uag, Sampling())
        fast = [LoadedModel.load(ref) for ref in (options.target, options.drafter)]
        native = all(model.native for model in fast)
        self.native = Pair.of(fast[0], fast[1], options.uag, Sampling()) if native else None
        self.clocks = Clocked(self.target.model), Clocked(self.drafter.model)
        chats = [prompt.messages() for prompt in prompts.read(options.prompts)[: options.limit]]
        self.prompts = [(templates.chat_ids(tokenizers[0], messages), messages) for messages in chats]

    def theirs(self, ids: list[int], length: int) -> list[int]:
        return assisted(self.target.model, self.drafter.model, ids, self.k, length, **self.tokenizers)

    def ours(self, pair: Pair, ids: list[int], messages: Any, k: int) -> list[int]:
        decoder = pair.decoder([pair.prompt_pair(ids, messages)], Constant(k), Sampling())
        return generate(decoder, ids, self.length).tokens

    def measure(self) -> dict[str, Run]:
        """Every prompt decoded in every way, one after the other."""
        ids, messages = self.prompts[0]
        self.theirs(ids, 8)  # warm-up
        self.ours(self.pair, ids, messages, self.k)
        runs = {name: Run() for name in ("theirs", "ours", "alone", "native")}
        for ids, messages in self.prompts:
            self._clock(runs["theirs"], lambda ids=ids: self.theirs(ids, self.length))
            self._clock(runs["ours"], lambda ids=ids, m=messages: self.ours(self.pair, ids, m, self.k))
            self._clock(runs["alone"], lambda ids=ids, m=messages: self.ours(self.pair, ids, m, 0))
            if self.native is not None:
                native = self.native
                self._clock(runs["native"], lambda ids=ids, m=messages, p=native: self.ours(p, ids, m, self.k))
        return runs

    def _clock(self, run: Run, decode: Any) -> None:
        calls, inside = self.clocks[0].calls, sum(clock.seconds for clock in self.clocks)
        start = time.perf_counter()
        run.texts.append(decode())
        run.seconds += time.perf_counter() - start
        run.passes += self.clocks[0].calls - calls
        run.inside += sum(clock.seconds for clock in self.clocks) - inside

    @torch.inference_mode()
    def gap(self, ids: list[int], text: list[int], other: list[int]) -> float:
        """How far apart the target's two best logits are where two answers to `ids` part; 0 where they do not."""
        if text == other:
            return 0.0
        n = sum(1 for _ in itertools.takewhile(lambda both: both[0] == both[1], zip(text, other, strict=False)))
        best = self.target.model(torch.tensor([ids + text[:n]]), logits_to_keep=1).logits[0, -1].topk(2).values
        return float(best[0] - best[1])

    def equal(self, run: Run, other: Run) -> float:
        """The share of prompts whose texts are equal, or part at a near-tie."""
        gaps = [
            self.gap(ids, text, reference)
            for (ids, _), text, reference in zip(self.prompts, run.texts, other.texts, strict=True)
        ]
        for gap in filter(None, gaps):
            console.print(f"texts part where the target's best logits are {gap:.2g} apart")
        return sum(gap < TIE for gap in gaps) / len(gaps)


def _loaded(ref: str) -> LoadedModel:
    """The model in transformers, float32."""
    tokenizer = checkpoint.load_tokenizer(ref)
    return LoadedModel(load(ref), tokenizer, end_ids(checkpoint.find(ref), tokenizer))


def work(options: argparse.Namespace, table: Table) -> None:
    if options.quick:
        options.limit, options.new_tokens = 2, 12
    comparison = Comparison(options)
    runs = comparison.measure()
    ours, theirs, native = runs["ours"], runs["theirs"], runs["native"]
    rates = {f"{name}_tokens_per_second": round(run.tokens / run.seconds, 2) for name, run in runs.items() if run.texts}
    table.limit("loop's own share of the time", 1 - ours.inside / ours.seconds, 0.05)
    name = "our loop on transformers' models / their assisted generation"
    table.ratio(name, theirs.seconds / ours.seconds, 1.0, **rates)
    if native.texts:
        name = "on the native engine / transformers' assisted generation"
        table.ratio(name, theirs.seconds / native.seconds, 1.3)
        table.ratio("native texts equal, but for near-ties", comparison.equal(native, theirs), 1.0)
    else:
        console.print("left out: the native engine does not run this pair")
    table.ratio("texts equal to transformers', but for near-ties", comparison.equal(ours, theirs), 1.0)
    mal = [run.tokens / run.passes for run in (ours, theirs)]
    passes = {"passes": ours.passes, "transformers_passes": theirs.passes}
    table.ratio("MAL / transformers'", mal[0] / mal[1], 1.0, **passes)


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("target", nargs="?", default=MODEL)
    arguments.add_argument("drafter", nargs="?", default=MODEL)
    arguments.add_argument("--prompts", default="demo:eval")
    arguments.add_argument("--limit", type=int, default=8)
    arguments.add_argument("--k", type=int, default=5)
    arguments.add_argument("--new-tokens", type=int, default=64)
    arguments.add_argument("--uag", default="realign", help="our route where the tokenizers differ")
    run("speculation", arguments.parse_args(), work)
