"""A user's own GGUF files on our engine, our drafters in llama-server, and long texts, all beside what there was.

    python benchmarks/files.py [--only rates,acceptance,context] [--target MODEL] [--drafter MODEL]

rates: files of the target, made by llama.cpp and packed as they are (`pack FILE --weights stored`), decode and read
beside llama.cpp and ik_llama.cpp on the same files, taking turns. acceptance: a 2:4 drafter of ours, exported to Q4_0,
drafts in llama-server as it does here. context: 8,000 tokens of text, beside our own build of before.

The first run builds the peers, half an hour; the drafter takes a quarter of an hour.
"""

import argparse
from contextlib import closing
from functools import partial
from pathlib import Path

from common import CACHE, measured, parser, run
from fourbit_answers import own_ways
from fourbit_models import Models, add_options
from fourbit_rates import Row, fast, own_turn, peer_turn, take_turns
from long_context import measure as measure_context
from peers_llama import Llama, available, gguf, ik_llama_cpp, llama_cpp
from peers_server import Answer, Server
from record import Table
from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import write_json
from sparsedraft.base.places import slug
from sparsedraft.models import checkpoint
from sparsedraft.native.model import native_model
from sparsedraft.native.packed_folder import is_packed
from sparsedraft.native.session import Engine
from whole_answers import Task

KINDS = ("Q4_K_M", "Q4_0", "Q8_0")
PROMPT = 512  # tokens
DECODE, READ = 0.95, 1.2  # goals: our rate / the faster of theirs
K, ANSWERED = 4, 96  # tokens drafted a step, and of an answer
NEAR = 0.98  # goal: the smaller of the two acceptances / the larger


def stored(file: Path, folder: Path) -> Path:
    """The GGUF `file` packed as it is."""
    if not is_packed(folder):
        measured("pack", file, "--out", folder, "--weights", "stored", "--overwrite")
    return folder


def places(models: Models) -> Path:
    """Where what is made of the target's files lies."""
    return CACHE / "files" / slug(models.target.replace("/", "-"))


def rates(options: argparse.Namespace, models: Models, peers: dict[str, Llama], table: Table) -> None:
    """Decoding and reading, file by file."""
    kinds = KINDS[:1] if options.quick else KINDS
    rows = {}
    for kind in kinds:
        file = gguf(peers["llama.cpp"], models.target, kind)
        engine = Engine(native_model(stored(file, places(models) / kind)), threads=options.threads)
        engine.forward([7] * 32)  # warm-up
        rows[f"ours {kind}"] = Row(partial(own_turn, engine), engine.model.handle.bytes)
        for name, llama in peers.items():
            rows[f"{name} {kind}"] = Row(partial(peer_turn, llama, file, options.threads), file.stat().st_size)
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


def acceptance(options: argparse.Namespace, models: Models, peers: dict[str, Llama], table: Table) -> None:
    """Drafts that the target's Q4_0 file accepts: of the exported drafter in llama-server, of its folder here."""
    file = gguf(peers["llama.cpp"], models.target, "Q4_0")
    exported = models.folder / "one-shot-2of4-q4_0.gguf"
    if not exported.is_file():
        measured("export", models.one_shot, "--gguf", "q4_0", "--out", exported)
    count, tokens = (2, 16) if options.quick else (24, ANSWERED)
    task = Task.of("demo:eval", count, tokens, checkpoint.load_tokenizer(models.target))
    here = own_ways(stored(file, places(models) / "Q4_0"), {"2:4": models.one_shot}, "Q4_0")[
        f"Q4_0, 2:4 drafter, K={K}"
    ]
    with closing(Server(peers["llama.cpp"], file, options.threads, exported, K)) as server:
        there = [server.answer(ids, tokens) for ids in task.measured]
    ours, theirs = (accepted(answers) for answers in ([here(ids, tokens) for ids in task.measured], there))
    table.note("drafts accepted of drafted, exported drafter in llama-server", theirs, prompts=count)
    table.note("drafts accepted of drafted, the same folder in ours", ours)
    ratio = min(ours, theirs) / max(ours, theirs)
    table.ratio("acceptance in llama-server and ours: the smaller / the larger", ratio, NEAR)


def accepted(answers: list[Answer]) -> float:
    """Accepted of drafted tokens."""
    drafted, kept = sum(answer.drafted for answer in answers), sum(answer.accepted for answer in answers)
    if not kept:
        raise UserError(f"none of {drafted} drafts was accepted, and there is nothing to compare: look at the drafter.")
    return kept / drafted


def context(options: argparse.Namespace, models: Models, _: dict[str, Llama], table: Table) -> None:
    """Keys and values of a long text: their memory, and decoding behind them."""
    measure_context(models, options.threads, options.quick, table)


GROUPS = {"rates": rates, "acceptance": acceptance, "context": context}


def work(options: argparse.Namespace, table: Table) -> None:
    peers, missing = available({"llama.cpp": llama_cpp, "ik_llama.cpp": ik_llama_cpp})
    for sentence in missing:
        console.print(sentence, soft_wrap=True, markup=False)
    if "llama.cpp" not in peers:
        raise UserError("llama.cpp makes the files that are measured, and cannot be built: see above.")
    (CACHE / "files").mkdir(parents=True, exist_ok=True)
    models = Models(options)
    for name in options.only.split(","):
        GROUPS[name](options, models, peers, table)


def main() -> None:
    arguments = parser(__doc__)
    add_options(arguments)
    arguments.add_argument("--only", default=",".join(GROUPS), help="groups of rows, separated by commas")
    options = arguments.parse_args()
    if unknown := [name for name in options.only.split(",") if name not in GROUPS]:
        arguments.error(f"--only {unknown[0]!r}: there are {', '.join(GROUPS)}")
    run("files", options, work)


if __name__ == "__main__":
    main()
