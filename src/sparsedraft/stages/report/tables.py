"""The tables of a run as rows of text: the same figures for the terminal, Markdown and HTML."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

SHOWN_K = (3, 5, 8)
UNKNOWN = "-"  # of a model whose MACs its structure does not tell
EQUAL = 1.01  # MACs may be so many times another's and count as equal: whole layers match others only about


def shown_ks(result: dict[str, Any]) -> list[int | str]:
    """The K's of the main table: 3, 5 and 8 where measured, else all; and the policies."""
    return [*([k for k in SHOWN_K if k in result["k"]] or list(result["k"])), *result.get("policies", [])]


def middle_k(result: dict[str, Any]) -> int:
    """The K to speak of where there is room for one: 5 if measured."""
    return 5 if 5 in result["k"] else sorted(result["k"])[len(result["k"]) // 2]


def main_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of the main table."""
    ks = shown_ks(result)
    header = ["drafter", *(f"MAL, K={k}" for k in ks), "α", "MACs vs target", "improvement factor"]
    rows = []
    for d in result["drafters"]:
        best = d["best_k"]  # a policy, where no number was evaluated; None where theory says nothing
        factor = UNKNOWN if d["c"] is None else f"{d['k'][str(best)]['improvement_factor']:.2f} (K={best})"
        macs = UNKNOWN if d["macs_vs_dense"] is None else f"{d['macs_vs_dense'] - 1:+.1%}"
        mals = [f"{d['k'][str(k)]['mal']:.2f}" for k in ks]
        rows.append([d["name"], *mals, f"{d['alpha']:.3f}", macs, factor])
    return header, rows


def macs_text(macs: int | None) -> str:
    """MACs with commas between thousands."""
    return "not known" if macs is None else f"{macs:,}"


def demo_table(result: dict[str, Any]) -> Table:
    """The main table for the terminal."""
    header, rows = main_rows(result)
    how = "greedy" if result["temperature"] == 0 else f"temperature {result['temperature']:g}"
    table = Table(title=f"{result['prompts']} prompts, {result['target_tokens']} target tokens, {how}")
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def spec_bench_table(result: dict[str, Any]) -> Table | None:
    """MAL of each drafter and K by task of Spec-Bench, and measured speed-ups; None for other prompts."""
    if any("by_task" not in d for d in result["drafters"]):
        return None
    tasks = sorted(result["drafters"][0]["by_task"])
    table = Table(title="Spec-Bench: MAL (speed-up)")
    for index, name in enumerate(["drafter", "K", *tasks, "overall"]):
        table.add_column(name, justify="left" if index == 0 else "right")
    for d in result["drafters"]:
        for k, figures in d["k"].items():
            cells = [
                _with_speedup(task["mal"][k], task.get("speedup", {}).get(k))
                for _, task in sorted(d["by_task"].items())
            ]
            overall = _with_speedup(figures["mal"], figures.get("measured", {}).get("speedup"))
            table.add_row(d["name"], k, *cells, overall)
    return table


def _with_speedup(mal: float, speedup: float | None) -> str:
    return f"{mal:.2f}" if speedup is None else f"{mal:.2f} ({speedup:.2f}x)"


def speed_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of what the loop took, theory beside measurement; no rows where nothing was timed."""
    header = ["drafter", "K", "tokens/s", "speed-up", "with the prompt", "in theory"]
    header += ["c", "v", "draft", "verify", "loop"]
    rows = []
    for d in result["drafters"]:
        for k, figures in d["k"].items():
            m = figures.get("measured", {})
            if not m.get("seconds"):
                continue
            seconds, total = m["seconds"], sum(m["seconds"].values())
            shares = [seconds["draft"] / total, seconds["verify"] / total, m["overhead"]]
            rows.append([
                d["name"], str(k), f"{m['tokens_per_second']:.1f}", measured_factor(m), whole_factor(m),
                UNKNOWN if figures["improvement_factor"] is None else f"{figures['improvement_factor']:.2f}x",
                f"{m['c']:.2f}", f"{m['v']:.2f}", *(f"{share:.0%}" for share in shares),
            ])  # fmt: skip
    return header, rows


def whole_factor(measured: dict[str, Any]) -> str:
    """The speed-up of whole answers, their prompts' reading included; "-" in results of before it was measured."""
    return measured_factor(measured["end_to_end"]) if "end_to_end" in measured else "-"


def measured_factor(measured: dict[str, Any]) -> str:
    """The speed-up with its interval; results of before there was one have none."""
    speedup = f"{measured['speedup']:.2f}x"
    if "speedup_interval" not in measured:
        return speedup
    low, high = measured["speedup_interval"]
    return f"{speedup} ({low:.2f}-{high:.2f})"


def alone_rate(result: dict[str, Any]) -> str:
    """Tokens a second of the target without a drafter, where the loop was timed: from the least to the most."""
    rates = [
        figures["measured"]["target_tokens_per_second"]
        for d in result["drafters"]
        for figures in d["k"].values()
        if figures.get("measured", {}).get("seconds")
    ]
    least, most = f"{min(rates):.1f}", f"{max(rates):.1f}"
    return least if least == most else f"{least} to {most}"


def speed_table(result: dict[str, Any]) -> Table | None:
    """`speed_rows` for the terminal; None where nothing was timed."""
    header, rows = speed_rows(result)
    if not rows:
        return None
    table = Table(title=f"measured; the target alone: {alone_rate(result)} tokens/s")
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, figures to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def category_rows(result: dict[str, Any], k: int) -> tuple[list[str], list[tuple[str, list[float]]]]:
    """(drafter names, (category, MAL of each drafter at K = k) for every category)."""
    names = [d["name"] for d in result["drafters"]]
    categories = sorted({c for d in result["drafters"] for c in d["by_category"]})
    rows = [(c, [d["by_category"][c]["mal"][str(k)] for d in result["drafters"]]) for c in categories]
    return names, rows


def headline(result: dict[str, Any], baseline: str | None) -> str:
    """What the numbers say, in one sentence.

    It compares the drafter of the greatest MAL among those of no more MACs than `baseline` with it; where there is no
    such drafter, the greatest MAL with the least.
    """
    k = middle_k(result)
    mal = {d["name"]: d["k"][str(k)]["mal"] for d in result["drafters"]}
    macs = {d["name"]: d["macs_per_token"] for d in result["drafters"]}
    counted = [n for n in mal if macs[n] is not None and macs.get(baseline) is not None]
    equal = [n for n in counted if mal[n] > mal[baseline] and 0 < macs[n] <= EQUAL * macs[baseline]]
    best = max(equal or mal, key=lambda name: mal[name])
    text = f"{best} brings {mal[best]:.2f} tokens a step at K = {k}"
    if equal:
        text += f", {mal[best] / mal[baseline]:.2f} times as many as {baseline} of no fewer MACs ({mal[baseline]:.2f})"
    elif len(mal) > 1:
        worst = min(mal, key=lambda name: mal[name])
        text += f", {mal[best] / mal[worst]:.2f} times as many as {worst} ({mal[worst]:.2f})"
    return text + "."


def fastest(speed: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
    """(the drafter, K) whose whole answers gained most; None where whole answers were not timed."""
    ways = [
        (drafter, k, figures["measured"]["end_to_end"]["speedup"])
        for drafter in speed["drafters"]
        for k, figures in drafter["k"].items()
        if "end_to_end" in figures.get("measured", {})
    ]
    return max(ways, key=lambda way: way[2])[:2] if ways else None


def speed_headline(speed: dict[str, Any], packed_target: bool) -> str | None:
    """How much faster whole answers are written, in one sentence; None where that was not timed."""
    if (best := fastest(speed)) is None:
        return None
    drafter, k = best
    gained = whole_factor(drafter["k"][k]["measured"])
    alone = "the same target alone, in the same bits and on the same engine" if packed_target else "the target alone"
    count = sum(len(d["k"]) for d in speed["drafters"])
    chosen = f", the fastest of {count} ways" if count > 1 else ""
    return f"Whole answers are written {gained} as fast with {drafter['name']} (K = {k}{chosen}) as by {alone}."
