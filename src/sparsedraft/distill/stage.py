"""The `distill` stage: prompts in, a data folder of the target's answers out."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparsedraft import artifact, checkpoint, distilled, prompts
from sparsedraft.conversation import answer_all
from sparsedraft.errors import UserError
from sparsedraft.speculate.sampling import Sampling

MODES = ("respond",)
UNSTORED = ("min_gap", "max_new_tokens")  # of an Answer: matter to evaluation only


def distill(
    target: str,
    source: str,
    out: Path,
    *,
    mode: str = "respond",
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    samples: int = 1,
    top_k_logprobs: int = 0,
    batch_size: int = 32,
    limit: int | None = None,
    evaluation_prompts: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Let `target` answer every turn of the prompts in `source`; write the data folder `out`.

    Lengths in tokens. `limit` takes the first prompts. With `evaluation_prompts`, it is an error if one of them is
    among the prompts. Raises UserError for bad options, prompts or models.
    """
    if mode not in MODES:
        raise UserError(f"--mode {mode} is not known: choose one of {', '.join(MODES)}.")
    sampling = Sampling(temperature, top_k, top_p)
    if samples > 1 and sampling.greedy:
        raise UserError(
            f"--samples {samples} would be {samples} equal answers under greedy decoding: set --temperature."
        )
    chosen = prompts.read(source)[:limit]
    if evaluation_prompts is not None:
        prompts.check_no_overlap(chosen, prompts.read(evaluation_prompts))
    folder = checkpoint.find(target)
    tokenizer = checkpoint.load_tokenizer(folder)
    prompts.chat_ids(tokenizer, chosen[0].messages())  # a model without a template is refused before it is loaded

    def build(work: Path) -> dict[str, Any]:
        model = checkpoint.load(folder, dtype=checkpoint.dtype_named(dtype), device=checkpoint.device_named(device))
        answers = answer_all(
            model,
            tokenizer,
            chosen,
            journal=work / ".answers.jsonl",
            description="distilling",
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seed=seed,
            samples=samples,
            top_k_logprobs=top_k_logprobs,
        )
        made = {"mode": mode, "engine": "transformers", "temperature": temperature}
        rows = [{**{k: v for k, v in asdict(a).items() if k not in UNSTORED}, **made} for a in answers]
        tokenizer.save_pretrained(work / "tokenizer")
        return distilled.summary(rows, top_k_logprobs, distilled.write(work, rows))

    inputs: dict[str, object] = {
        "target": folder,
        "prompts": [[p.id, p.category, p.system, *p.turns] for p in chosen],
        "options": {
            "mode": mode,
            "max_new_tokens": max_new_tokens,
            "sampling": asdict(sampling),
            "samples": samples,
            "top_k_logprobs": top_k_logprobs,
            "batch_size": batch_size,
            "device": device,
            "dtype": dtype,
        },
    }
    return artifact.make(out, "distill", inputs, build, seed=seed, overwrite=overwrite)
