"""`sparsedraft generate`: stream text from a target, with or without a drafter."""

import sys
import time
from typing import Any

from sparsedraft import checkpoint, prompts
from sparsedraft.console import console
from sparsedraft.speculate.backend import TransformersBackend
from sparsedraft.speculate.decode import speculate
from sparsedraft.speculate.sampling import Sampling
from sparsedraft.speculate.vocab import check_same_head, check_same_tokenizer


def stream(
    target: str,
    prompt: str,
    *,
    drafter: str | None,
    k: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    raw: bool,
    stats: bool,
    seed: int,
    device: str,
    dtype: str,
) -> dict[str, Any]:
    """Write the target's answer to stdout as it comes; return text, token counts and, with `stats`, every step.

    The text is the target's own (greedy) or distributed as the target's own (temperature > 0), whatever the drafter.
    """
    sampling = Sampling(temperature, top_k, top_p)
    arithmetic: dict[str, Any] = {"dtype": checkpoint.dtype_named(dtype), "device": checkpoint.device_named(device)}
    tokenizer = checkpoint.load_tokenizer(target)
    if drafter:
        check_same_tokenizer(tokenizer, checkpoint.load_tokenizer(drafter), target, drafter)
    p = checkpoint.load(target, **arithmetic)
    q = checkpoint.load(drafter, **arithmetic) if drafter else None
    if q is not None:
        check_same_head(p, q, str(drafter))
        checkpoint.check_sparsity(q, checkpoint.find(str(drafter)))
    ids = tokenizer(prompt)["input_ids"] if raw else prompts.chat_ids(tokenizer, [{"role": "user", "content": prompt}])

    tokens: list[int] = []
    steps: list[dict[str, int]] = []
    shown = ""
    start = time.perf_counter()
    for step in speculate(
        TransformersBackend(p),
        TransformersBackend(q) if q is not None else None,
        ids,
        k=k if q is not None else 0,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        eos_ids=checkpoint.eos_ids(p, tokenizer),
        seed=seed,
    ):
        tokens += step.emitted
        steps.append({"drafted": len(step.drafted), "accepted": step.accepted, "emitted": len(step.emitted)})
        text = str(tokenizer.decode(tokens, skip_special_tokens=True))
        if not text.endswith("\ufffd"):  # else a character is still split over tokens
            sys.stdout.write(text[len(shown) :])
            sys.stdout.flush()
            shown = text
    seconds = time.perf_counter() - start
    text = str(tokenizer.decode(tokens, skip_special_tokens=True))
    sys.stdout.write(text[len(shown) :] + "\n")
    result: dict[str, Any] = {
        "text": text,
        "prompt_tokens": len(ids),
        "tokens": len(tokens),
        "steps": len(steps),
        "mal": len(tokens) / len(steps),
        "tokens_per_second": len(tokens) / seconds,
    }
    if stats:
        accepted = [step["accepted"] for step in steps]
        console.print(f"{len(tokens)} tokens in {len(steps)} steps, {result['mal']:.2f} a step, {seconds:.1f} s")
        if drafter:
            console.print(f"drafted tokens accepted, step by step: {' '.join(map(str, accepted))}", soft_wrap=True)
        result["accepted"] = accepted
        result["drafted"] = [step["drafted"] for step in steps]
    return result
