"""A user's own GGUF files on our engine, beside llama.cpp and ik_llama.cpp on the same files, in the same minutes.

    python benchmarks/files.py [--model MODEL]

The files are made by llama.cpp from the model's checkpoint, and packed as they are (`pack FILE --weights stored`).
Decoding and reading take turns, configuration after configuration. The first run builds the peers, half an hour.
"""

import argparse
from functools import partial
from pathlib import Path

from common import CACHE, MODEL, measured, parser, run
from fourbit_models import TARGET
from fourbit_rates import Row, fast, own_turn, peer_turn, take_turns
from peers_llama import available, gguf, ik_llama_cpp, llama_cpp
from record import Table
from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import write_json
from sparsedraft.base.places import slug
from sparsedraft.native.model import native_model
from sparsedraft.native.packed_folder import is_packed
from sparsedraft.native.session import Engine

KINDS = ("Q4_K_M", "Q4_0", "Q8_0")
PROMPT = 512  # tokens
DECODE, READ = 0.95, 1.2  # goals: our rate / the faster of theirs


def stored(file: Path, folder: Path) -> Path:
    """The GGUF `file` packed as it is."""
    if not is_packed(folder):
        measured("pack", file, "--out", folder, "--weights", "stored", "--overwrite")
    return folder


def work(options: argparse.Namespace, table: Table) -> None:
    model = options.model or (MODEL if options.quick else TARGET)
    at = CACHE / "files" / slug(model.replace("/", "-"))
    peers, missing = available({"llama.cpp": llama_cpp, "ik_llama.cpp": ik_llama_cpp})
    for sentence in missing:
        console.print(sentence, soft_wrap=True, markup=False)
    if "llama.cpp" not in peers:
        raise UserError("llama.cpp makes the files that are measured, and cannot be built: see above.")
    kinds = KINDS[:1] if options.quick else KINDS
    rows = {}
    for kind in kinds:
        file = gguf(peers["llama.cpp"], model, kind)
        engine = Engine(native_model(stored(file, at / kind)), threads=options.threads)
        engine.forward([7] * 32)  # warm-up
        rows[f"ours {kind}"] = Row(partial(own_turn, engine), engine.model.handle.bytes)
        for name, llama in peers.items():
            rows[f"{name} {kind}"] = Row(partial(peer_turn, llama, file, options.threads), file.stat().st_size)
    (CACHE / "files").mkdir(parents=True, exist_ok=True)
    keep = partial(write_json, CACHE / "files" / "turns.json")
    turns, prompt = (1, 128) if options.quick else (5, PROMPT)
    take_turns(rows, (prompt,), turns, keep)
    take_turns(fast(rows), (), 2 * turns, keep)  # the host's memory has fast and slow minutes
    for name, row in rows.items():
        spans = {what: [round(min(seen), 1), round(max(seen), 1)] for what, seen in row.seen.items()}
        read = round(row.rate(str(prompt)), 1)
        table.note(f"decode, {name}, tokens/s", row.rate("decode"), read=read, bytes=row.bytes, spans=spans)
    for kind in kinds:
        for what, goal in (("decode", DECODE), (str(prompt), READ)):
            theirs = {name: row.rate(what) for name, row in rows.items() if name.endswith(kind) and "llama" in name}
            best = max(theirs, key=lambda name: theirs[name])
            ratio = rows[f"ours {kind}"].rate(what) / theirs[best]
            label = f"{'decode' if what == 'decode' else f'read {what} tokens'}, {kind}: ours / theirs"
            if kind == "Q8_0":  # beside the 4-bit files, for which there are goals
                table.note(label, ratio, theirs=best)
            else:
                table.ratio(label, ratio, goal, theirs=best)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", help=f"default: {TARGET}, in a quick check {MODEL}")
    run("files", arguments.parse_args(), work)


if __name__ == "__main__":
    main()
