"""Data generation: batched and refilled, against one prompt at a time; same prompts, same engine, same run."""

from common import MODEL, close, row, seconds, setup
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.ends import end_ids
from sparsedraft.text import prompts
from sparsedraft.writers.protocol.requests import Request
from sparsedraft.writers.transformers.completions import generate_batch

PROMPTS, NEW_TOKENS, BATCH = 96, 128, 48


def main() -> list[dict]:
    model, tokenizer = checkpoint.load(MODEL), checkpoint.load_tokenizer(MODEL)
    chosen = prompts.read("demo:train")[:PROMPTS]
    asked = [Request(p.id, templates.chat_ids(tokenizer, p.messages()), NEW_TOKENS) for p in chosen]
    eos_ids = end_ids(checkpoint.find(MODEL), tokenizer)

    def rate(requests: list[Request], batch_size: int) -> float:
        written = 0

        def work() -> None:
            nonlocal written
            for output in generate_batch(
                model, requests, batch_size=batch_size, sampling=Sampling(), eos_ids=eos_ids, top_k_logprobs=0
            ):
                written += len(output.token_ids)

        taken = seconds(work)
        return written / taken

    rate(asked[:4], 4)  # warm-up
    alone = rate(asked[::8], 1)  # every eighth prompt: tokens/s does not need them all
    batched = rate(asked, BATCH)
    details: dict = {"tokens_per_second": round(batched, 1), "alone_tokens_per_second": round(alone, 1)}
    return [row("data generation, batched against one prompt at a time", batched / alone, 5, **details)]


if __name__ == "__main__":
    setup()
    close(main())
