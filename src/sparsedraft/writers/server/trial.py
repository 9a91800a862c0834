"""Is a server's word the model's? What it is tried for before a row is asked of it, with questions of our own.

Two kinds of servers give other things than they were asked for without a word: such that take no notice of a
temperature (`transformers serve` where the checkpoint's generation_config.json has no do_sample), whose samples are all
one greedy text; and such that give no log-probabilities of the model (llama-server with a drafter reports 0 and no
alternatives for drafts that were accepted, SGLang divides by the temperature first).
"""

from collections.abc import Callable, Sequence
from typing import Any

from sparsedraft.maths.sampling import Sampling
from sparsedraft.writers.server import reported
from sparsedraft.writers.server.reported import Place
from sparsedraft.writers.server.server import Choice

# a question, options beside it and how many likeliest tokens to report, to what is said; None where it is refused
Ask = Callable[[str, dict[str, Any], int], Choice | None]

OPEN = (  # there are thousands of answers to each
    "Write twelve random words, none of them related to another.",
    "Invent the names of ten people and say what each of them had for breakfast.",
    "Begin a story that nobody has ever told, in a place that nobody has ever seen.",
)
FORESEEN = "Count from 1 to 40, with commas in between, and write nothing else."  # what a drafter drafts well
HOT = (100.0, 2.0)  # temperatures: the second where a server takes none above it
TOKENS = 32
ALIKE = 24  # characters from which on two equal texts tell something


def unfit(ask: Ask, sampling: Sampling, k: int) -> str:
    """Why a server is not fit for answers drawn with `sampling`, with the k likeliest tokens of each place (0: none),
    and what to start it with; or "".
    """
    if not sampling.greedy and not heeds_temperature(ask):
        return (
            f"gives the same answers whatever the seed, at a temperature of {HOT[0]:g}, too: set do_sample to true in "
            "the served checkpoint's generation_config.json (transformers serve needs that), or leave out --temperature"
        )
    if not k or (choice := ask(FORESEEN, {"max_tokens": TOKENS}, k)) is None:
        return ""
    if not (places := reported.read(choice.logprobs)):
        return "returns no log-probabilities: leave out --top-k-logprobs, or use another server"
    if why := reported.wrong_with(places, k):
        return f"{why}; or leave out --top-k-logprobs"
    if not sampling.greedy and sampling.temperature != 1 and _scales(ask, sampling.temperature, k):
        return (
            "reports log-probabilities after the temperature, not the model's own: start it with the model's (SGLang: "
            "SGLANG_RETURN_ORIGINAL_LOGPROB=1; vLLM: --logprobs-mode raw_logprobs), or leave out --top-k-logprobs"
        )
    return ""


def heeds_temperature(ask: Ask) -> bool:
    """Whether two seeds give two texts at a high temperature.

    At 100 the logits are divided by so much that nearly every token of the vocabulary is as likely as any other: that
    two texts of ALIKE characters are equal, three times, by chance, is out of the question. Some servers first leave
    out tokens of less than 5 % (llama-server), or take no temperature above 2. There it would need a model that has
    but one answer to each of three questions to which there are thousands. True, too, where texts are too short to
    tell, or the server refuses to be asked.
    """
    for question in OPEN:
        pair = [_hot(ask, question, seed) for seed in (1, 2)]
        if None in pair or pair[0] != pair[1] or len(str(pair[0])) < ALIKE:
            return True
    return False


def _hot(ask: Ask, question: str, seed: int) -> str | None:
    for temperature in HOT:
        choice = ask(question, {"temperature": temperature, "seed": seed, "max_tokens": TOKENS}, 0)
        if choice is not None:
            return choice.thoughts + choice.text
    return None


def _scales(ask: Ask, temperature: float, k: int) -> bool:
    """Whether the server divides by the temperature before it reports; False where it does not say."""
    found = []
    for at in (0.0, temperature):
        choice = ask(OPEN[0], {"max_tokens": 1, "temperature": at}, k)
        found.append(reported.read(choice.logprobs) if choice is not None else [])
    return all(found) and scaled(found[0], found[1], temperature)


def scaled(greedy: Sequence[Place], sampled: Sequence[Place], temperature: float) -> bool:
    """Whether log-probabilities of the same place, asked for greedily and at `temperature`, are the model's divided by
    it. False where they would hardly differ: servers' own rounding makes a few hundredths.
    """
    plain, hot = dict(greedy[0][1]), dict(sampled[0][1])
    both = sorted((token for token in plain if token in hot), key=lambda token: -plain[token])
    if len(both) < 2:
        return False
    first, last = both[0], both[-1]
    lead, found = plain[first] - plain[last], hot[first] - hot[last]
    expected = lead / temperature
    return abs(expected - lead) > 0.4 and abs(found - expected) < abs(found - lead)
