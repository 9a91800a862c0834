"""A trial of the server, with trial questions before the first row: does it give what it is asked for?

Two kinds of servers silently do not. Some ignore the temperature (`transformers serve` if the checkpoint's
generation_config.json has no do_sample), so that all samples are one greedy text. Some report log-probabilities that
are not the model's (llama-server with a drafter reports 0 and no alternatives for accepted drafts; SGLang divides the
logits by the temperature first).
"""

from collections.abc import Callable, Sequence
from typing import Any

from sparsedraft.maths.sampling import Sampling
from sparsedraft.writers.server import reported
from sparsedraft.writers.server.reported import Place
from sparsedraft.writers.server.server import Choice

# (question, more options, number of likeliest tokens to report) to the answer; None if it is refused
Ask = Callable[[str, dict[str, Any], int], Choice | None]

OPEN = (  # there are thousands of answers to each
    "Write twelve random words, none of them related to another.",
    "Invent the names of ten people and say what each of them had for breakfast.",
    "Begin a story that nobody has ever told, in a place that nobody has ever seen.",
)
FORESEEN = "Count from 1 to 40, with commas in between, and write nothing else."  # easy for a drafter
HOT = (100.0, 2.0)  # temperatures; the second is for servers that allow none above it
TOKENS = 32
ALIKE = 24  # characters: shorter texts may be equal by chance


def unfit(ask: Ask, sampling: Sampling, k: int) -> str:
    """Why a server is not fit for answers drawn with `sampling`, and how to start it instead; or "".

    `k` is how many of the likeliest tokens it must report at each place.
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

    At a temperature of 100 nearly all tokens of the vocabulary are equally likely, so two texts of ALIKE characters are
    not equal by chance, let alone three times. Some servers first drop tokens below 5 % (llama-server), or allow no
    temperature above 2. There the test fails only for a model with a single answer to each of three questions that have
    thousands. Also True where the texts are too short for a verdict, or the server refuses the questions.
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
    """Whether the server divides the logits by the temperature before it reports; False if it reports nothing."""
    places = []
    for at in (0.0, temperature):
        choice = ask(OPEN[0], {"max_tokens": 1, "temperature": at}, k)
        places.append(reported.read(choice.logprobs) if choice is not None else [])
    return all(places) and scaled(places[0], places[1], temperature)


def scaled(greedy: Sequence[Place], sampled: Sequence[Place], temperature: float) -> bool:
    """Whether the log-probabilities at `temperature` are those of the greedy request, at the same place, divided by it.

    False if that would hardly make a difference: servers' rounding makes a few hundredths.
    """
    plain, hot = dict(greedy[0][1]), dict(sampled[0][1])
    both = sorted((token for token in plain if token in hot), key=lambda token: -plain[token])
    if len(both) < 2:
        return False
    first, last = both[0], both[-1]
    lead, hot_lead = plain[first] - plain[last], hot[first] - hot[last]
    expected = lead / temperature
    return abs(expected - lead) > 0.4 and abs(hot_lead - expected) < abs(hot_lead - lead)
