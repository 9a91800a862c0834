"""The table of results of one finished run, from what lies in its folder.

    python studies/results.py RUN [--keep docs/results/NAME] [--into docs/RESULTS.md]
    python studies/results.py docs/results/NAME [--into docs/RESULTS.md]

Markdown on stdout: each drafter's acceptance and MAL with their 95 % intervals (bootstrap over prompts), its cost, its
measured speed and its size; the claims of the paper as this run answers them; SHA-256 of what the figures follow from.
--keep copies the results (no weights, no texts) to where the same table can be made again; --into puts it in a file,
in the place of the same run's before.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from comparisons import claims
from sparsedraft.base.provenance import hash_path
from sparsedraft.stages.report.tables import alone_rate, markdown, measured_factor, speed_rows, whole_factor
from stored import CLAIMS, REFERENCE, best_measured, figure, further_timings, mean_tokens, read, timings

EVALUATED = ("eval", "sampled", "packed-eval", "speed", "speed-*")  # the last: sparsedraft eval of packed drafters
KEPT = (*EVALUATED, "distilled", "packed/*")  # parts whose result.json is used
HASHED = ("distilled", "drafters/*/*", *EVALUATED)


def acceptance(result: dict[str, Any]) -> str:
    """α and MAL of every drafter."""
    ks = result["k"]
    rows = [
        [d["name"], figure(d["alpha"], d["alpha_interval"], 3)]
        + [figure(d["k"][str(k)]["mal"], d["k"][str(k)]["mal_interval"]) for k in ks]
        for d in result["drafters"]
    ]
    return markdown(["drafter", "α", *(f"MAL, K={k}" for k in ks)], rows)


def cost(run: Path, result: dict[str, Any], timing: dict[str, Any] | None) -> str:
    """MACs, c, factor, best K, and where the packed drafters were timed: speed and bytes."""
    measured = {d["name"]: d for d in timing["drafters"]} if timing else {}
    rows = []
    # where no dense drafter was evaluated, the target is its own
    dense = next((d["macs_per_token"] for d in result["drafters"] if d["name"] == REFERENCE), None)
    against = "vs the target" if dense is None else "vs the dense drafter"
    dense = dense or result["dense_macs_per_token"]
    header = ["drafter", "MACs per token", against, "c by MACs", "improvement factor (K)"]
    header += ["c", "K", "speed-up", "with the prompt", "tokens/s", "MB on disk"] if timing else []
    for d in result["drafters"]:
        best = d["k"][str(d["best_k"])]
        row = [d["name"], f"{d['macs_per_token'] / 1e6:.0f} M"]
        row += [f"{d['macs_per_token'] / dense - 1:+.1%}", f"{d['c']:.3f}"]
        row += [f"{best['improvement_factor']:.2f} ({d['best_k']})"]
        if timing and d["name"] not in measured:  # evaluated since, not timed yet
            row += ["-"] * 6
        elif timing:
            k, m = best_measured(measured[d["name"]])
            packed = read(run, f"packed/{Path(measured[d['name']]['path']).name}")
            row += [f"{m['c']:.2f}", k, measured_factor(m), whole_factor(m), f"{m['tokens_per_second']:.1f}"]
            row += [f"{packed['bytes'] / 1e6:.0f}" if packed else "-"]
        rows.append(row)
    return markdown(header, rows)


def further(timing: dict[str, Any]) -> list[str]:
    """What a further timing of the same drafters gave: a table between two sentences."""
    header, rows = speed_rows(timing)
    mal = {d["name"]: d["k"] for d in timing["drafters"]}
    heading = f"Answers of {mean_tokens(timing):.0f} tokens on average ({timing['prompts']} prompts, "
    heading += f"{timing['sequences']} answers):"
    cells = [[*row[:2], f"{mal[row[0]][row[1]]['mal']:.2f}", *row[2:]] for row in rows]
    alone = f"The target alone, beside each of these drafters: {alone_rate(timing)} tokens/s."
    return [heading, markdown([*header[:2], "MAL", *header[2:]], cells), alone]


def origins(run: Path) -> dict[str, dict[str, Any]]:
    """By artifact: SHA-256, and when, where and from which commit it was made."""
    file = run / "origins.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    artifacts = {}
    for folder in (f for part in HASHED for f in sorted(run.glob(part)) if (f / "provenance.json").is_file()):
        provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        artifacts[str(folder.relative_to(run))] = {
            "sha256": hash_path(folder),
            **{key: provenance[key] for key in ("commit", "seed", "seconds", "finished", "host", "versions")},
        }
    return artifacts


def keep(run: Path, out: Path) -> None:
    """Copy what `table` needs of `run` to `out`, in the place of what an earlier run left there."""
    if run.resolve() == out.resolve():
        sys.exit(f"--keep {out} is the run itself: name another folder.")
    if next(out.glob("*/provenance.json"), None):
        sys.exit(f"--keep {out} is the folder of a run, whose results it would replace: name another folder.")
    for file in (f for part in KEPT for f in out.glob(f"{part}/result.json")):
        file.unlink()
    for file in (f for part in KEPT for f in sorted(run.glob(f"{part}/result.json"))):
        (out / file.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, out / file.relative_to(run))
    shutil.copyfile(run / "recipe.yaml", out / "recipe.yaml")
    greedy, timing = read(run, "eval"), timings(run)
    (out / CLAIMS).write_text(
        json.dumps(claims(run, greedy, timing) if greedy else [], indent=1) + "\n", encoding="utf-8"
    )
    (out / "origins.json").write_text(json.dumps(origins(run), indent=1) + "\n", encoding="utf-8")


def put(text: str, name: str, file: Path) -> None:
    """Write `text` between the two comments in `file` that name it, which come to its end where there are none."""
    first, last = f"<!-- results of {name} -->\n", f"<!-- end of {name} -->\n"
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    head, mark, rest = before.partition(first)
    if mark and last not in rest:
        sys.exit(f"{file} has no line {last.strip()!r} after {first.strip()!r}: put it back where the table ends.")
    tail = rest.partition(last)[2] if mark else ""
    file.write_text(f"{head}{first}\n{text}\n{last}{tail}", encoding="utf-8")


def table(run: Path) -> str:
    """Everything about the finished run in `run`, as Markdown."""
    greedy, sampled, packed, data = (read(run, part) for part in ("eval", "sampled", "packed-eval", "distilled"))
    timing = timings(run)
    if greedy is None:
        sys.exit(f"{run} has no eval/result.json: give the folder of a finished run.")
    out = [
        f"{greedy['prompts']} prompts, {greedy['sequences']} answers, {greedy['target_tokens']} target tokens, greedy.",
        acceptance(greedy),
    ]
    if sampled:
        out += [f"Temperature {sampled['temperature']:g}, {sampled['target_tokens']} tokens.", acceptance(sampled)]
    if packed:
        out += [f"Packed, {packed['target_tokens']} target tokens:"]
        out.append(acceptance(packed))
    out.append(cost(run, greedy, timing))
    if timing:
        alone = f"The target alone, beside each drafter: {alone_rate(timing)} tokens/s"
        out.append(f"{alone} ({timing['prompts']} prompts; the drafters packed).")
    for evaluation in further_timings(run).values():
        out += further(evaluation)
    out += claims(run, greedy, timing)
    if data:
        out.append(f"Distilled data: {data['rows']} answers, {data['target_tokens']:,} target tokens.")
    rows = [
        [where, f"`{o['sha256'][:16]}`", o["commit"], str(o["seed"]), f"{o['seconds'] / 60:.1f}", o["finished"][:16]]
        for where, o in origins(run).items()
    ]
    out.append(markdown(["artifact", "SHA-256", "commit", "seed", "minutes of its last run", "finished"], rows))
    return "\n\n".join(out) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--keep", type=Path, help="a folder for what the table follows from; its name is the run's")
    parser.add_argument("--into", type=Path, help="a Markdown file that gets the table")
    options = parser.parse_args(arguments)
    text = table(options.run)
    if options.keep:
        keep(options.run, options.keep)
    if options.into:
        put(text, (options.keep or options.run).resolve().name, options.into)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
