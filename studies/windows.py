r"""What a drafter that reads only a text's first and last tokens loses, by how positions and states are kept.

    python studies/windows.py EVAL DRAFTER --windows 64,256,1024 --out FOLDER

EVAL: the --out of an evaluation, whose target's greedy answers are the texts. DRAFTER runs in transformers, in float32.
Three ways to leave the middle of a text out. `re-based`: as if it had never been written, so positions follow one
another (what the package does). `kept`: the same tokens at the positions that they have in the text. `sliding`:
everything was read, each token attending to the first and last ones only, so states still know of what they no longer
see; positions are kept. A row for each window and way: MAL at each K, simulated, and the share of the answer's tokens
that are guessed, by how far the answer has come. Rows stay in FOLDER.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsedraft.base.console import track
from sparsedraft.base.journal import read_lines
from sparsedraft.maths.sampling import likeliest
from sparsedraft.native.loading import load
from sparsedraft.speculate.drafters.window import Window
from sparsedraft.stages.evaluate.acceptance import Histogram
from sparsedraft.stages.evaluate.simulation import simulate
from study import Rows, close, setup

KS = (1, 2, 4, 8)
BANDS = (32, 128, 1 << 30)  # tokens of an answer: the ends of the bands that are told apart
WAYS = ("re-based", "kept", "sliding")
Text = tuple[list[int], list[int]]  # the prompt's ids, and the answer's


def texts_of(evaluation: Path, least: int, most: int) -> list[Text]:
    """The prompts and answers whose prompts have `least` to `most` tokens."""
    rows = [row for line in read_lines(evaluation / "answers.jsonl", ("rows",)) for row in line["rows"]]
    found = [(row["prompt_ids"], row["answer_ids"]) for row in rows if not row.get("dropped")]
    return [text for text in found if least <= len(text[0]) <= most]


def attended(length: int, window: Window) -> Tensor:
    """[length, length]: whether the token of a row sees that of a column: the first `sinks`, and the last `size`."""
    at = torch.arange(length)
    behind = at[:, None] - at[None]
    return (behind >= 0) & ((behind < window.size) | (at[None] < window.sinks))


@torch.no_grad()
def guesses(
    model: Any, ids: list[int], count: int, mask: Tensor | None = None, positions: Tensor | None = None
) -> Tensor:
    """The likeliest tokens [count] after each of the last `count` of `ids`."""
    more: dict[str, Any] = {} if mask is None else {"attention_mask": mask[None, None]}
    if positions is not None:
        more["position_ids"] = positions[None]
    output = model(torch.tensor([ids]), use_cache=False, logits_to_keep=count, **more)
    return likeliest(output.logits[0].float())


def guessed(model: Any, text: Text, way: str, window: Window | None) -> Tensor:
    """Whether each token of the answer is guessed [n]; without a window the drafter reads everything."""
    prompt, answer = text
    ids, right = [*prompt, *answer], torch.tensor(answer)
    if window is None:
        return guesses(model, ids[:-1], len(answer)) == right
    if way == "sliding":
        return guesses(model, ids[:-1], len(answer), attended(len(ids) - 1, window)) == right
    parts = []
    for begin, start, end in window.stretches(len(prompt), len(ids)):
        left = [*window.of(ids[:start]), *ids[start : end - 1]]
        positions = torch.arange(len(left))
        if way == "kept":
            positions[window.sinks :] += begin - window.sinks
        parts.append(guesses(model, left, end - start, positions=positions))
    return torch.cat(parts) == right


def row_of(model: Any, texts: list[Text], way: str, window: Window | None) -> dict[str, Any]:
    """The figures of one way."""
    totals = {k: Histogram(k) for k in KS}
    bands = [[0, 0] for _ in BANDS]
    with track(f"{way} {window.size if window else ''}", len(texts), "texts") as tracker:
        for text in texts:
            matches = guessed(model, text, way, window)
            for k in KS:
                totals[k] += simulate(matches.float(), k, len(matches))
            begin = 0
            for band, end in zip(bands, BANDS, strict=True):
                part, begin = matches[begin:end], end
                band[0], band[1] = band[0] + int(part.sum()), band[1] + len(part)
            tracker.advance()
    shares = [round(hits / count, 4) if count else None for hits, count in bands]
    return {"texts": len(texts), "mal": {str(k): round(totals[k].mal, 3) for k in KS}, "guessed": shares}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("drafter")
    parser.add_argument("--windows", default="64,256,1024")
    parser.add_argument("--sinks", type=int, default=4)
    parser.add_argument("--least", type=int, default=0, help="tokens of a prompt, at least")
    parser.add_argument("--most", type=int, default=1 << 30, help="and at most")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    setup()
    rows, texts = Rows(options.out), texts_of(options.evaluation, options.least, options.most)
    model = load(options.drafter)
    windows = [None, *(Window(int(size), options.sinks) for size in options.windows.split(","))]
    for window in windows:
        for way in WAYS if window else ("all",):
            label = f"{way}{f', window {window.size}' if window else ''}, prompts of {options.least} to {options.most}"
            if rows.lack(label):
                rows.add({"label": label, **row_of(model, texts, way, window)})
    close(rows.rows)


if __name__ == "__main__":
    main()
