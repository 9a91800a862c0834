r"""How far a rounded model strays from its checkpoint: KL divergence of the next token, position by position.

    python studies/divergence.py CHECKPOINT NAME=MODEL [NAME=MODEL ...] --text FILE --out FOLDER

MODEL: a packed folder, which the native engine runs with its own rounding of activations; or a checkpoint or .gguf
file, whose weights transformers runs in float32 (llama.cpp would round activations, too). NAME=weights:PACKED runs a
packed folder's weights in float32 as well; NAME=int8-cache:PACKED keeps its keys and values in 8 bits, and
NAME=fine-inputs:PACKED multiplies with inputs of 16 bits throughout. --text: prompts or distilled data; --tokens of it,
in sequences of --length, each token seeing those before it. The mean is over tokens, its interval (95 %) of a bootstrap
over sequences; the ratio of the last line is to the model named --against. Rows stay in FOLDER: a second call measures
only models that are new.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsedraft.base.console import console, track
from sparsedraft.base.errors import UserError
from sparsedraft.layerwise.calibration import sequences
from sparsedraft.models import checkpoint
from sparsedraft.native.loading import load
from sparsedraft.native.model import native_model
from sparsedraft.native.packed_folder import is_packed
from sparsedraft.native.session import Engine
from study import Rows, close, setup

WEIGHTS_ONLY, SMALL_CACHE, FINE_INPUTS = "weights:", "int8-cache:", "fine-inputs:"
Logits = Callable[[Tensor], Tensor]  # ids [length] -> [length, V]


def in_float32(model: str) -> Logits:
    loaded = load(model)

    def logits(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return loaded(ids[None]).logits[0].float()

    return logits


def natively(folder: Path, cache: str = "int16", fine_inputs: bool = False) -> Logits:
    engine = Engine(native_model(folder, cache, fine_inputs))

    def logits(ids: Tensor) -> Tensor:
        engine.rollback(0)
        return engine.forward(ids.tolist(), len(ids))

    return logits


def runner(model: str) -> Logits:
    """What gives the logits of `model`."""
    if model.startswith(WEIGHTS_ONLY):
        return in_float32(model.removeprefix(WEIGHTS_ONLY))
    if model.startswith(SMALL_CACHE):
        return natively(checkpoint.find(model.removeprefix(SMALL_CACHE)), "int8")
    if model.startswith(FINE_INPUTS):
        return natively(checkpoint.find(model.removeprefix(FINE_INPUTS)), fine_inputs=True)
    folder = checkpoint.find(model)
    return natively(folder) if is_packed(folder) else in_float32(model)


def divergence(reference: Tensor, other: Tensor) -> tuple[float, float]:
    """(mean KL(reference ‖ other), nats; share of positions with the same first choice), for logits [length, V]."""
    p, q = reference.log_softmax(-1), other.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    return float(kl.mean()), float((p.argmax(-1) == q.argmax(-1)).float().mean())


def row(inputs: dict[str, Any], values: list[tuple[float, float]], length: int) -> dict[str, Any]:
    """The row of one model: its inputs, its means over sequences, an interval, and the figure of each sequence."""
    kl = np.array([value for value, _ in values])
    drawn = np.random.default_rng(0).integers(len(kl), size=(2000, len(kl)))
    low, high = np.quantile(kl[drawn].mean(1), (0.025, 0.975))
    return {
        **inputs, "tokens": len(kl) * length, "kld": round(float(kl.mean()), 6),
        "low": round(float(low), 6), "high": round(float(high), 6),
        "same_first": round(float(np.mean([same for _, same in values])), 5), "answers": kl.tolist(),
    }  # fmt: skip


def wanted(rows: Rows, named: dict[str, str], shared: dict[str, Any], against: str | None) -> dict[str, str]:
    """The models that `rows` lack; UserError where these figures would not stand beside those that are there.

    `shared`: what all rows have in common, by its name there.
    """
    for old in rows.rows:
        if any(old.get(name) != value for name, value in shared.items()):
            raise UserError(f"{rows.file} has rows of another checkpoint, text or length: give another --out.")
        if old["model"] != named.get(old["label"], old["model"]):
            raise UserError(f"{rows.file} has another model as {old['label']}: give another NAME.")
    if against and against not in {*named, *(old["label"] for old in rows.rows)}:
        raise UserError(f"--against {against} is none of the models: give the NAME of one.")
    return {label: model for label, model in named.items() if rows.lack(label)}


def measure(options: argparse.Namespace, models: dict[str, str]) -> tuple[dict[str, list[tuple[float, float]]], int]:
    """(by label the divergence and the share of equal choices of each sequence, tokens of a sequence)."""
    tokenizer = checkpoint.load_tokenizer(checkpoint.find(options.checkpoint))
    ids = sequences(options.text, tokenizer, options.tokens, options.length, 0)
    reference = in_float32(options.checkpoint)
    running = {label: runner(model) for label, model in models.items()}
    found: dict[str, list[tuple[float, float]]] = {label: [] for label in models}
    with track("reading", len(ids), "sequences") as tracker:
        for sequence in ids:
            expected = reference(sequence)
            for label, logits in running.items():
                found[label].append(divergence(expected, logits(sequence)))
            tracker.advance(1)
    return found, ids.shape[1]


def study(options: argparse.Namespace) -> None:
    """Measure the models that are new, and print all."""
    if unnamed := [model for model in options.models if "=" not in model]:
        raise UserError(f"{unnamed[0]} has no name: give NAME=MODEL.")
    named = dict(model.split("=", 1) for model in options.models)
    shared = {"checkpoint": options.checkpoint, "text": options.text, "asked_tokens": options.tokens}
    shared["length"] = options.length
    rows = Rows(options.out)
    if lacking := wanted(rows, named, shared, options.against):
        found, length = measure(options, lacking)
        for label, model in lacking.items():
            rows.add(row({"label": label, "model": model, **shared}, found[label], length))
    if options.against:
        base = next(r["kld"] for r in rows.rows if r["label"] == options.against)
        for r in rows.rows:
            console.print(f"{r['label']}: {r['kld'] / base:.3f} of the KLD of {options.against}")
    close([{name: value for name, value in r.items() if name != "answers"} for r in rows.rows])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--text", default="demo:eval")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--against", help="NAME by whose KLD the others' are divided")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    setup()
    try:
        study(options)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
