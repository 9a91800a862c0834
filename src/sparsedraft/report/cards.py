"""A model card for each drafter of a run, to be uploaded as its README.md: what it is and brings, how to use it."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sparsedraft.report import tables
from sparsedraft.report.load import Run


def cards(run: Run) -> dict[str, dict[str, Any]]:
    """What the template shows, by the name of the file (without its ending)."""
    return {slug(d): _card(run, d) for d in run.result["drafters"]}


def slug(drafter: dict[str, Any]) -> str:
    """`drafters/NAME/STAGE` is where a run leaves a drafter; one from elsewhere goes by its own name."""
    path = Path(drafter["path"])
    return path.parent.name if path.parent.parent.name == "drafters" else drafter["name"].replace("/", "-")


def _card(run: Run, drafter: dict[str, Any]) -> dict[str, Any]:
    recipe = OmegaConf.to_container(OmegaConf.create(run.recipe)) if run.recipe else {}
    assert isinstance(recipe, dict)
    target, at = run.result["target"], f"drafters/{slug(drafter)}"
    made = {where: p for where, p in run.provenance.items() if where in ("distilled", "eval") or where.startswith(at)}
    k = tables.middle_k(run.result)
    found = [(how, result) for how, result in (("greedy", run.result), ("sampled", run.sampled)) if result]
    return {
        "drafter": drafter, "target": target, "base": recipe.get("drafter") or target, "k": k,
        "what": _what(drafter), "trained": any(where.endswith("finetuned") for where in made),
        "same": drafter.get("route", "same") == "same",
        "conditions": "; ".join(_conditions(result) for _, result in found),
        "header": ["", "α", *(f"MAL, K={n}" for n in run.result["k"])],
        "rows": [row for how, result in found if (row := _row(how, result, drafter["name"], run.result["k"]))],
        "categories": [
            [name or "(none)", f"{c['alpha']:.3f}", f"{c['mal'][str(k)]:.2f}"]
            for name, c in sorted(drafter["by_category"].items())
        ],
        "speed": _speed(run, drafter), "distilled": run.distilled, "provenance": made, "recipe": run.recipe.strip(),
    }  # fmt: skip


def _what(drafter: dict[str, Any]) -> str:
    if drafter["pattern"] == "dense":
        kind = "Dense"
    else:
        kind = f"{drafter['sparsity']:.0%} of the weights of its decoder linears are 0 ({drafter['pattern']})"
        kind += "; embedding and head are dense"
    return (
        f"{kind}. {drafter['macs_per_token'] / 1e6:,.0f} million MACs a token, "
        f"{drafter['macs_vs_dense'] - 1:+.1%} against the dense drafter, {drafter['c']:.3f} of the target's."
    )


def _conditions(result: dict[str, Any]) -> str:
    how = "greedy" if result["temperature"] == 0 else f"temperature {result['temperature']:g}"
    loop = "simulated" if result["simulated"] else "real loop"
    return f"{result['prompts']} prompts, {result['target_tokens']} target tokens, {how} ({loop})"


def _row(how: str, result: dict[str, Any], name: str, ks: list[int]) -> list[str] | None:
    drafter = next((d for d in result["drafters"] if d["name"] == name), None)
    if drafter is None:
        return None
    mals = [drafter["k"].get(str(k)) for k in ks]
    return [
        how, _with_interval(drafter["alpha"], drafter.get("alpha_interval"), 3),
        *("" if m is None else _with_interval(m["mal"], m.get("mal_interval"), 2) for m in mals),
    ]  # fmt: skip


def _with_interval(value: float, interval: list[float] | None, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text if interval is None else f"{text} ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"


def _speed(run: Run, drafter: dict[str, Any]) -> dict[str, Any] | None:
    """The packed drafter's measured speed; None where nothing was timed."""
    timed = [d for d in run.speed["drafters"] if d["name"] == drafter["name"]] if run.speed else []
    if not timed or run.speed is None:
        return None
    header, rows = tables.speed_rows({**run.speed, "drafters": timed})
    packed = run.packed.get(Path(timed[0]["path"]).name)
    if not rows or packed is None:
        return None
    return {
        "header": header[1:], "rows": [row[1:] for row in rows], "alone": tables.alone_rate({"drafters": timed}),
        "prompts": run.speed["prompts"], "megabytes": round(packed["bytes"] / 1e6), "weights": packed["weights"],
        "head_tokens": packed.get("head_tokens"),
    }  # fmt: skip
