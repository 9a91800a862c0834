"""One generation, step by step, for people to read."""

from typing import Any

from sparsedraft.models.tokenizers.detokenizer import text_of
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.stages.evaluate.options import EvaluateOptions
from sparsedraft.stages.evaluate.rows import allowed
from sparsedraft.stages.evaluate.transcript import Transcript
from sparsedraft.writers.conversation import Answer


def worked_example(pair: Pair, answer: Answer, k: int, options: EvaluateOptions) -> dict[str, Any]:
    """The steps of `pair` with K = `k` on one answer: what was drafted, how much of it stood, the target's own token.

    A simulated evaluation that decodes greedily takes the target's part from its answer.
    """
    prompted = pair.prompt_pair(list(answer.prompt_ids), answer.messages[:-1])
    transcript = Transcript.of(pair.target, [answer]) if options.simulate and options.sampling.greedy else None
    decoder = pair.decoder([prompted], Constant(k), options.sampling, target=transcript)

    def word(token: int) -> str:
        return text_of(pair.target.tokenizer, [token], special=True)

    return {
        "k": k,
        "prompt_id": answer.prompt_id,
        "prompt": answer.messages[-2]["content"],
        "steps": [
            {
                "drafted": [word(token) for token in step.drafted],
                "accepted": step.accepted,
                "target": word(step.emitted[-1]) if len(step.emitted) > step.accepted else None,
            }
            for step in decoder.decode([prompted.target], allowed(answer), [answer.seed])
        ],
    }
