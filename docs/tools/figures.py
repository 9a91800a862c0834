"""The SVG figures of README and docs, drawn from the records in benchmarks/results.

    make figures        # or: python docs/tools/figures.py

Writes docs/figures/overview.svg (the four stages, and bars of measured speed) and docs/figures/sparsity.svg (speed-up
against sparsity). The same records give the same bytes.
"""

import json
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORDS, FIGURES = ROOT / "benchmarks" / "results", ROOT / "docs" / "figures"
INK, PALE, FIRST, SECOND, GRID = "#1f2933", "#5b6770", "#00695c", "#80cbc4", "#d5dbe0"
FONT = "font-family='Helvetica, Arial, sans-serif'"

STAGES = (  # title, what it does, in two lines
    ("1  distill", "the target writes", "the training answers"),
    ("2  prune", "SparseGPT zeroes 50-75 %", "of every decoder linear"),
    ("3  finetune", "on those answers; each", "zero stays exactly zero"),
    ("4  eval, pack", "tokens per step, speed;", "zeros left out, int8"),
)
SHOWN = {  # the drafters of the bars: their name in the record, and in the figure
    "layer-pruned+distilled": "layer-pruned, same MACs",
    "dense": "dense",
    "sd2-50": "SD², 50 % zeros",
    "sd2-2:4": "SD², 2:4",
}
MEASURES = (("decoding", FIRST), ("whole answers", SECOND))


def record(name: str) -> dict[str, Any]:
    """The record `name` of benchmarks/results."""
    return json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))


def source(found: dict[str, Any]) -> str:
    """Where the figures of a record come from, for the foot of a figure."""
    return f"{found['machine']['cpus']} cores, {found['machine']['cpu']}; {found['date']}, commit {found['commit']}"


def text(x: float, y: float, said: str, size: int = 13, fill: str = INK, **more: str) -> str:
    attributes = "".join(f" {key.replace('_', '-')}='{value}'" for key, value in more.items())
    return f"<text x='{x:g}' y='{y:g}' font-size='{size}' fill='{fill}'{attributes}>{escape(said)}</text>"


def box(x: float, y: float, width: float, height: float, fill: str, **more: str) -> str:
    attributes = "".join(f" {key.replace('_', '-')}='{value}'" for key, value in more.items())
    return f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' fill='{fill}'{attributes}/>"


def line(x1: float, y1: float, x2: float, y2: float, stroke: str = GRID, width: float = 1) -> str:
    return f"<path d='M{x1:g} {y1:g}L{x2:g} {y2:g}' stroke='{stroke}' stroke-width='{width:g}' fill='none'/>"


def drawing(width: int, height: int, title: str, parts: list[str]) -> str:
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' role='img' {FONT}>"
    return "\n".join([head, f"<title>{escape(title)}</title>", box(0, 0, width, height, "#ffffff"), *parts, "</svg>\n"])


def stages(top: float) -> list[str]:
    """Four boxes in a row, an arrow between neighbours."""
    out = []
    for i, (title, *lines) in enumerate(STAGES):
        x = 20 + 195 * i
        out += [box(x, top, 175, 76, "#e0f2f1", rx="6"), text(x + 12, top + 24, title, 16, FIRST, font_weight="bold")]
        out += [text(x + 12, top + 46 + 18 * j, said, 12) for j, said in enumerate(lines)]
        if i:
            out.append(f"<path d='M{x - 17} {top + 33}l12 5l-12 5z' fill='{FIRST}'/>")
    return out


def bars(found: dict[str, Any], top: float) -> list[str]:
    """For each drafter two bars: the speed of decoding and of whole answers, in speeds of the target alone."""
    left, scale = 210, 300  # x of no speed, and pixels for the target's speed
    height = 44 * len(SHOWN)
    out = []
    for tick in (0, 0.5, 1, 1.5):
        x = left + scale * tick
        strong = tick == 1
        out.append(line(x, top, x, top + height, INK if strong else GRID, 1.5 if strong else 1))
        said = "the target alone = 1" if strong else f"{tick:g}"
        out.append(text(x, top + height + 17, said, 12, PALE, text_anchor="middle"))
    for i, (drafter, label) in enumerate(SHOWN.items()):
        y = top + 44 * i + 5
        out.append(text(left - 10, y + 21, label, 14, text_anchor="end"))
        for j, (measure, fill) in enumerate(MEASURES):
            speedup = found["figures"]["drafters"][drafter][measure]["speedup"]
            out.append(box(left, y + 17 * j, scale * speedup, 15, fill))
            out.append(text(left + scale * speedup + 6, y + 12 + 17 * j, f"{speedup:.2f}x", 12))
    return out


def overview(found: dict[str, Any]) -> str:
    """The four stages above the bars of measured speed."""
    of = found["figures"]
    said = f"Speed of Qwen2.5-Coder-1.5B with a drafter made of its 0.5B ({of['prompts']} prompts, int8, K = 2)"
    parts = [*stages(14), text(20, 122, said, 15, font_weight="bold")]
    for i, (measure, fill) in enumerate(MEASURES):
        x = 20 + 130 * i
        parts += [box(x, 136, 13, 13, fill), text(x + 19, 147, measure, 13)]
    parts += [text(290, 147, "(whole answers include the reading of the prompt)", 12, PALE), *bars(found, 160)]
    parts.append(text(20, 372, source(found), 11, PALE))
    return drawing(800, 384, "The four stages, and the measured speed of a target with each drafter", parts)


POINTS = {  # of the figure over sparsity: drafters by kind, and how their points are drawn
    "unstructured": (("sd2-50", "sd2-75"), FIRST),
    "N:M": (("sd2-4:8", "sd2-2:4", "sd2-3:8", "sd2-2:8"), "#c2571a"),
    "dense, no zeros made": (("dense",), INK),
    "layers dropped": (("layer-pruned+distilled",), PALE),
}
DROPPED = 0.5  # where layer-pruned drafters stand: their MACs are about those of this sparsity
ASIDE = {"sd2-50": -30, "sd2-2:4": 30, "layer-pruned+distilled": -30, "sd2-75": -14, "sd2-2:8": 14}  # pixels


def over_sparsity(found: dict[str, Any]) -> str:
    """Decoding speed-up with its interval against the share of zeros, one point a drafter."""
    left, bottom, width, height = 70, 330, 640, 280

    def place(sparsity: float, speedup: float) -> tuple[float, float]:
        return left + width * sparsity / 0.85, bottom - height * (speedup - 0.8) / 0.9

    parts = [text(20, 28, "Decoding speed-up of the target against the drafter's sparsity", 15, font_weight="bold")]
    for tick in (0.8, 1.0, 1.2, 1.4, 1.6):
        _, y = place(0, tick)
        parts += [line(left, y, left + width, y), text(left - 8, y + 4, f"{tick:.1f}x", 12, PALE, text_anchor="end")]
    for share in (0, 0.25, 0.5, 0.75):
        x, _ = place(share, 0.8)
        parts.append(text(x, bottom + 20, f"{share:.0%}", 12, PALE, text_anchor="middle"))
    for i, (kind, (drafters, fill)) in enumerate(POINTS.items()):
        parts += [box(20 + 190 * i, 360, 12, 12, fill), text(38 + 190 * i, 371, kind, 13)]
        for drafter in drafters:
            of = found["figures"]["drafters"][drafter]
            share = {"layer-pruned+distilled": DROPPED, "dense": 0}.get(drafter, of["sparsity"])
            x, y = place(share, of["decoding"]["speedup"])
            x += ASIDE.get(drafter, 0)
            low, high = (place(0, s)[1] for s in of["decoding"]["speedup_interval"])
            parts += [line(x, low, x, high, fill, 1.5), f"<circle cx='{x:g}' cy='{y:g}' r='5' fill='{fill}'/>"]
            parts.append(text(x + 8, y - 6, drafter.removesuffix("+distilled"), 12, fill))
    said = f"Bars: 95 % intervals over {found['figures']['prompts']} prompts. {source(found)}"
    parts.append(text(20, 394, said, 11, PALE))
    return drawing(800, 408, "Decoding speed-up against sparsity", parts)


def main() -> None:
    FIGURES.mkdir(parents=True, exist_ok=True)
    for name, svg in (
        ("overview", overview(record("qwen-coder-answers"))),
        ("sparsity", over_sparsity(record("qwen-coder-decoding"))),
    ):
        (FIGURES / f"{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
