"""The decoding loop: its own share of the time, and transformers' assisted generation on the same pair, prompts and K.

python benchmarks/speculation.py [TARGET [DRAFTER]] [--prompts FILE] [--limit N] [--k K] [--new-tokens N] [--uag ROUTE]

Our loop runs on the same transformers models, in float32, and once more on the native engine, as `sparsedraft` has it
by itself. Greedy. All must write the same text, or part where the target's two best logits lie closer than 1e-3 (sums
have another order where another number of tokens is read), and the target must need the same number of passes. Seconds
are those of whole answers, prompts' reading included.
"""

import argparse
import functools
import itertools
import time
from typing import Any

import torch
from transformers import PreTrainedModel

from common import MODEL, close, row, setup
from sparsedraft.base.console import console
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.ends import end_ids
from sparsedraft.speculate.loop.decode import Generation, generate
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.text import prompts
from sparsedraft.writers.loaded import LoadedModel


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


def assisted(target: Any, drafter: Any, ids: list[int], k: int, new: int, **tokenizers: Any) -> list[int]:
    """transformers' own: constant K, no confidence stop; `tokenizers` are those of a pair that has two."""
    config = drafter.generation_config
    config.num_assistant_tokens, config.num_assistant_tokens_schedule = k, "constant"
    config.assistant_confidence_threshold = 0.0
    asked = torch.tensor([ids])
    out: Any = target.generate(asked, assistant_model=drafter, max_new_tokens=new, do_sample=False, **tokenizers)
    return out[0, len(ids) :].tolist()


@torch.inference_mode()
def gap(target: PreTrainedModel, ids: list[int], mine: list[int], theirs: list[int]) -> float:
    """How far apart the target's two best logits are where two answers to `ids` part."""
    n = sum(1 for _ in itertools.takewhile(lambda both: both[0] == both[1], zip(mine, theirs, strict=False)))
    best = target(torch.tensor([ids + mine[:n]]), logits_to_keep=1).logits[0, -1].topk(2).values
    return float(best[0] - best[1])


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", default=MODEL)
    parser.add_argument("drafter", nargs="?", default=MODEL)
    parser.add_argument("--prompts", default="demo:eval")
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--uag", default="realign", help="our route where the tokenizers differ")
    chosen = parser.parse_args(arguments)
    tokenizer = checkpoint.load_tokenizer(chosen.target)
    target, drafter = checkpoint.load(chosen.target), checkpoint.load(chosen.drafter)
    eos_ids = end_ids(checkpoint.find(chosen.target), tokenizer)
    other = checkpoint.load_tokenizer(chosen.drafter)
    across = (
        {} if other.get_vocab() == tokenizer.get_vocab() else {"tokenizer": tokenizer, "assistant_tokenizer": other}
    )
    drafting = LoadedModel(drafter, other, end_ids(checkpoint.find(chosen.drafter), other))
    pair = Pair.of(LoadedModel(target, tokenizer, eos_ids), drafting, chosen.uag, Sampling())
    both = [LoadedModel.load(ref) for ref in (chosen.target, chosen.drafter)]
    native = Pair.of(both[0], both[1], chosen.uag, Sampling()) if all(side.native for side in both) else None
    clocks = [Clocked(target), Clocked(drafter)]
    messages = {tuple(templates.chat_ids(tokenizer, p.messages())): p.messages() for p in prompts.read(chosen.prompts)}
    asked = [list(ids) for ids in messages][: chosen.limit]

    def ours(ids: list[int], k: int, pair: Pair = pair) -> Generation:
        prompted = pair.prompted(ids, messages[tuple(ids)])
        return generate(pair.decoder([prompted], Constant(k), Sampling()), ids, chosen.new_tokens)

    assisted(target, drafter, asked[0], chosen.k, 8, **across), ours(asked[0], chosen.k)  # warm-up
    totals = dict.fromkeys(("ours", "theirs", "plain", "forward", "native"), 0.0)
    tokens = passes = our_passes = same = ties = parted = 0
    for ids in asked:
        start, before = time.perf_counter(), [(c.calls, c.seconds) for c in clocks]
        theirs = assisted(target, drafter, ids, chosen.k, chosen.new_tokens, **across)
        middle, between = time.perf_counter(), [(c.calls, c.seconds) for c in clocks]
        made = ours(ids, chosen.k)
        end, after = time.perf_counter(), [(c.calls, c.seconds) for c in clocks]
        ours(ids, 0)
        totals["plain"] += time.perf_counter() - end
        if native is not None:
            begun = time.perf_counter()
            natively = ours(ids, chosen.k, native).tokens
            totals["native"] += time.perf_counter() - begun
            parted += natively != theirs and gap(target, ids, natively, theirs) >= 1e-3
        totals["theirs"] += middle - start
        totals["ours"] += end - middle
        totals["forward"] += sum(a[1] - b[1] for a, b in zip(after, between, strict=True))
        tokens += len(made.tokens)
        passes += between[0][0] - before[0][0]
        our_passes += after[0][0] - between[0][0]
        same += made.tokens == theirs
        if made.tokens != theirs:
            ties += (apart := gap(target, ids, made.tokens, theirs)) < 1e-3
            console.print(f"texts part where the target's best logits are {apart:.2g} apart")
    mal, their_mal = tokens / our_passes, tokens / passes
    console.print(f"{same} of {len(asked)} texts equal; MAL {mal:.3f}, transformers {their_mal:.3f} (from its passes)")
    details: dict[str, Any] = {
        "tokens_per_second": round(tokens / totals["ours"], 2),
        "transformers_tokens_per_second": round(tokens / totals["theirs"], 2),
        "target_alone_tokens_per_second": round(tokens / totals["plain"], 2),
    }
    fast = []
    if native is not None:
        rate = round(tokens / totals["native"], 2)
        name = "on the native engine / transformers' assisted generation"
        fast.append(row(name, totals["theirs"] / totals["native"], 1.3, tokens_per_second=rate))
        fast.append(row("native texts equal but for near-ties", 1 - parted / len(asked), 1.0, unit=""))
    return [
        row("loop's own share of the time", 1 - totals["forward"] / totals["ours"], 0.05, unit="", better="less"),
        row(
            "our loop on transformers' models / their assisted generation",
            totals["theirs"] / totals["ours"],
            1.0,
            **details,
        ),
        *fast,
        row(
            "texts equal to transformers', or parted at a near-tie",
            (same + ties) / len(asked),
            1.0,
            unit="",
            equal=same,
        ),
        row("MAL against transformers'", mal / their_mal, 1.0, unit="x", passes=our_passes, transformers_passes=passes),
    ]


if __name__ == "__main__":
    setup()
    close(main())
