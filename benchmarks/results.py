"""The table of results of one finished run, from what lies in its folder.

    python benchmarks/results.py RUN [--keep docs/results/NAME] [--into docs/RESULTS.md]
    python benchmarks/results.py docs/results/NAME [--into docs/RESULTS.md]

Markdown on stdout: each drafter's acceptance and MAL with their 95 % intervals (bootstrap over prompts), its cost, its
measured speed and its size; the claims of the paper as this run answers them; SHA-256 of what the figures follow from.
--keep copies the results (no weights, no texts) to where the same table can be made again; --into puts it in a file,
in the place of the same run's before.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sparsedraft.artifact import hash_path
from sparsedraft.measure.evaluate import ROWS
from sparsedraft.measure.summary import end_to_end_against, mal_against, speedup_against
from sparsedraft.report.load import OPTIONAL, asked_for
from sparsedraft.report.tables import alone_rate, markdown, measured_factor, middle_k, speed_rows, whole_factor

REFERENCE, CUT = "dense", "layer-pruned+distilled"
CLAIMS = "claims.json"  # of a run whose rows are elsewhere
KEPT = (
    "eval",
    "sampled",
    "packed-eval",
    "speed",
    "speed-*",  # further timings of the packed drafters, by sparsedraft eval
    "distilled",
    "packed/*",
)  # parts whose result.json is used
Rows = dict[str, list[dict[str, Any]]]  # of an evaluation, by drafter
HASHED = ("distilled", "drafters/*/*", "eval", "sampled", "packed-eval", "speed", "speed-*")


def read(run: Path, part: str) -> dict[str, Any] | None:
    file = run / part / "result.json"
    if not file.is_file() or (part in OPTIONAL and part not in asked_for(run)):
        return None
    return json.loads(file.read_text(encoding="utf-8"))


def timings(run: Path) -> dict[str, Any] | None:
    """The evaluation that was timed; None also where every answer ended with its first step."""
    timed = read(run, "speed")
    if timed and any(not found["measured"] for d in timed["drafters"] for found in d["k"].values()):
        return None
    return timed


def figure(value: float, interval: list[float], digits: int = 2) -> str:
    """The value, and its interval if there is one: a single prompt has none."""
    return f"{value:.{digits}f}" + (f" ({interval[0]:.{digits}f}-{interval[1]:.{digits}f})" if interval else "")


def acceptance(result: dict[str, Any]) -> str:
    """α and MAL of every drafter."""
    ks = result["k"]
    rows = [
        [d["name"], figure(d["alpha"], d["alpha_interval"], 3)]
        + [figure(d["k"][str(k)]["mal"], d["k"][str(k)]["mal_interval"]) for k in ks]
        for d in result["drafters"]
    ]
    return markdown(["drafter", "α", *(f"MAL, K={k}" for k in ks)], rows)


def cost(run: Path, result: dict[str, Any], timed: dict[str, Any] | None) -> str:
    """MACs, c, factor, best K, and where the packed drafters were timed: speed and bytes."""
    measured = {d["name"]: d for d in timed["drafters"]} if timed else {}
    header = ["drafter", "MACs per token", "vs the dense drafter", "c by MACs", "improvement factor (K)"]
    header += ["c", "K", "speed-up", "with the prompt", "tokens/s", "MB on disk"] if timed else []
    rows = []
    # where no dense drafter was evaluated, the target is its own
    dense = next(
        (d["macs_per_token"] for d in result["drafters"] if d["name"] == REFERENCE), result["dense_macs_per_token"]
    )
    for d in result["drafters"]:
        best = d["k"][str(d["best_k"])]
        row = [d["name"], f"{d['macs_per_token'] / 1e6:.0f} M"]
        row += [f"{d['macs_per_token'] / dense - 1:+.1%}", f"{d['c']:.3f}"]
        row += [f"{best['improvement_factor']:.2f} ({d['best_k']})"]
        if timed and d["name"] not in measured:  # evaluated since, not timed yet
            row += ["-"] * 6
        elif timed:
            k, m = best_measured(measured[d["name"]])
            packed = read(run, f"packed/{Path(measured[d['name']]['path']).name}") or {}
            size = packed["bytes"]
            row += [f"{m['c']:.2f}", k, measured_factor(m), whole_factor(m), f"{m['tokens_per_second']:.1f}"]
            row += [f"{size / 1e6:.0f}"]
        rows.append(row)
    return markdown(header, rows)


def further(timed: dict[str, Any]) -> list[str]:
    """What a further timing of the same drafters gave: a sentence and a table."""
    header, rows = speed_rows(timed)
    mal = {d["name"]: d["k"] for d in timed["drafters"]}
    said = f"Answers of {_mean(timed):.0f} tokens on average ({timed['prompts']} prompts, {timed['sequences']} answers)"
    said += f"; the target alone {alone_rate(timed)} tokens/s:"
    shown = [[*row[:2], f"{mal[row[0]][row[1]]['mal']:.2f}", *row[2:]] for row in rows]
    return [said, markdown([*header[:2], "MAL", *header[2:]], shown)]


def claims(run: Path, result: dict[str, Any], timed: dict[str, Any] | None) -> list[str]:
    """The paper's comparisons, prompt by prompt: MAL at K = 5 or the middle one, and speed-ups at each drafter's best K
    (their intervals know nothing of its having been chosen). From the run's rows, or as `keep` has stored them."""
    if (run / CLAIMS).is_file():
        return list(json.loads((run / CLAIMS).read_text(encoding="utf-8")))
    k = middle_k(result)
    if not (run / "eval" / ROWS).is_file():
        return _ratios(result, k)
    evaluated = {part: _by_drafter(run / part) for part in ("eval", "sampled", "packed-eval") if read(run, part)}
    best = {d["name"]: best_measured(d) for d in timed["drafters"]} if timed else {}
    columns: dict[str, Callable[[str], str]] = {}
    if CUT in evaluated["eval"]:
        columns[f"MAL / {CUT}'s"] = lambda name: figure(*_mal(evaluated["eval"], CUT, k, name))
    for part, label in (("eval", "MAL"), ("sampled", "MAL, sampled"), ("packed-eval", "MAL, packed")):
        if REFERENCE in evaluated.get(part, {}):
            columns[f"{label} / {REFERENCE}'s"] = partial(_loss, evaluated[part], REFERENCE, k)
    if timed:
        columns |= _speeds(run / "speed", timed)
    names = [name for name in evaluated["eval"] if name.startswith(("sd2", "sparse"))]
    rows = [[name, *(cell(name) for cell in columns.values())] for name in names]
    said = [
        f"Prompt by prompt, MAL at K={k}, speed-up at each drafter's best K:",
        markdown(["drafter", *columns], rows),
    ]
    for file in sorted(run.glob("speed-*/result.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        speeds = _speeds(file.parent, found)
        shown = [[d["name"], *(cell(d["name"]) for cell in speeds.values())] for d in found["drafters"]]
        if speeds:
            said += [f"The same of the answers of {_mean(found):.0f} tokens:", markdown(["drafter", *speeds], shown)]
    order = sorted(best, key=lambda name: -best[name][1]["speedup"])
    fastest = ", ".join(f"{name} {best[name][1]['speedup']:.2f}x" for name in order)
    return [*said, f"Measured speed-ups in their order: {fastest}."] if order else said


def _ratios(result: dict[str, Any], k: int) -> list[str]:
    """The comparisons of MAL of results that were kept without rows and without claims: no intervals."""
    mal = {d["name"]: d["k"][str(k)]["mal"] for d in result["drafters"]}
    others = [other for other in (CUT, REFERENCE) if other in mal]
    names = [name for name in mal if name.startswith(("sd2", "sparse"))]
    rows = [[name, *(f"{mal[name] / mal[other]:.2f}" for other in others)] for name in names]
    return [
        f"MAL at K={k} in multiples of others', without intervals:",
        markdown(["drafter", *(f"MAL / {o}'s" for o in others)], rows),
    ]


def _speeds(evaluation: Path, timed: dict[str, Any]) -> dict[str, Callable[[str], str]]:
    """Columns of a table: how many times the dense drafter's speed-up, each at its best K."""
    best = {d["name"]: best_measured(d)[0] for d in timed["drafters"]}
    if REFERENCE not in best:
        return {}
    loops = _by_drafter(evaluation)
    dense = loops[REFERENCE], best[REFERENCE]

    def cell(against: Callable[..., tuple[float, list[float]]], name: str) -> str:
        """One that was evaluated since, and not timed yet, has none."""
        return figure(*against(loops[name], best[name], *dense)) if name in best else "-"

    columns: dict[str, Callable[[str], str]] = {f"speed-up / {REFERENCE}'s": partial(cell, speedup_against)}
    if all("reading" in row for rows in loops.values() for row in rows):
        columns[f"with the prompt / {REFERENCE}'s"] = partial(cell, end_to_end_against)
    return columns


def _mean(timed: dict[str, Any]) -> float:
    return float(timed["target_tokens"] / timed["sequences"])


def _mal(rows: Rows, other: str, k: int, name: str) -> tuple[float, list[float]]:
    return mal_against(rows[name], rows[other], k)


def _loss(rows: Rows, other: str, k: int, name: str) -> str:
    ratio, interval = _mal(rows, other, k, name)
    within = " to ".join(f"{end - 1:+.1%}" for end in interval)
    return f"{ratio - 1:+.1%}" + (f" ({within})" if within else "")


def best_measured(drafter: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(K or policy, what was measured at it) where a timed drafter was the fastest."""
    k = max(drafter["k"], key=lambda k: drafter["k"][k]["measured"].get("speedup", 0))
    return k, drafter["k"][k]["measured"]


def _by_drafter(evaluation: Path) -> Rows:
    file = evaluation / ROWS
    if not file.is_file():
        sys.exit(f"{file} is missing, and {evaluation.parent} has no {CLAIMS}: give the run itself, or keep it again.")
    found: Rows = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["drafter"], []).append(row)
    return found


def origins(run: Path) -> dict[str, dict[str, Any]]:
    """By artifact: SHA-256, and when, where and from which commit it was made."""
    file = run / "origins.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    found = {}
    for folder in (f for part in HASHED for f in sorted(run.glob(part)) if (f / "provenance.json").is_file()):
        made = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        found[str(folder.relative_to(run))] = {
            "sha256": hash_path(folder),
            **{key: made[key] for key in ("commit", "seed", "seconds", "finished", "host", "versions")},
        }
    return found


def keep(run: Path, out: Path) -> None:
    """Copy what `table` needs of `run` to `out`, in the place of what an earlier run left there."""
    if run.resolve() == out.resolve():
        sys.exit(f"--keep {out} is the run itself: name another folder.")
    for file in (f for part in KEPT for f in out.glob(f"{part}/result.json")):
        file.unlink()
    for file in (f for part in KEPT for f in sorted(run.glob(f"{part}/result.json"))):
        (out / file.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, out / file.relative_to(run))
    shutil.copyfile(run / "recipe.yaml", out / "recipe.yaml")
    greedy, timed = read(run, "eval"), timings(run)
    (out / CLAIMS).write_text(
        json.dumps(claims(run, greedy, timed) if greedy else [], indent=1) + "\n", encoding="utf-8"
    )
    (out / "origins.json").write_text(json.dumps(origins(run), indent=1) + "\n", encoding="utf-8")


def put(text: str, name: str, file: Path) -> None:
    """Write `text` between the two comments in `file` that name it, which come to its end where there are none."""
    first, last = f"<!-- results of {name} -->\n", f"<!-- end of {name} -->\n"
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    head, found, rest = before.partition(first)
    if found and last not in rest:
        sys.exit(f"{file} has no line {last.strip()!r} after {first.strip()!r}: put it back where the table ends.")
    tail = rest.partition(last)[2] if found else ""
    file.write_text(f"{head}{first}\n{text}\n{last}{tail}", encoding="utf-8")


def table(run: Path) -> str:
    """Everything about the finished run in `run`, as Markdown."""
    greedy, sampled, packed, data = (read(run, part) for part in ("eval", "sampled", "packed-eval", "distilled"))
    timed = timings(run)
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
    out.append(cost(run, greedy, timed))
    if timed:
        alone = f"The target alone, beside each drafter: {alone_rate(timed)} tokens/s"
        out.append(f"{alone} ({timed['prompts']} prompts; the drafters packed).")
    for part in sorted(run.glob("speed-*/result.json")):
        out += further(json.loads(part.read_text(encoding="utf-8")))
    out += claims(run, greedy, timed)
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
    chosen = parser.parse_args(arguments)
    text = table(chosen.run)
    if chosen.keep:
        keep(chosen.run, chosen.keep)
    if chosen.into:
        put(text, (chosen.keep or chosen.run).resolve().name, chosen.into)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
