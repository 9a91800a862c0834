"""A model card for each drafter of a run, to be uploaded as its README.md: what it is and brings, how to use it."""

from typing import Any

from sparsedraft.base.places import slug
from sparsedraft.stages.report import tables
from sparsedraft.stages.report.load import Run


def cards(run: Run) -> dict[str, dict[str, Any]]:
    """What the template shows, by the name of the file (without its ending); nothing where no model drafts."""
    return {slug(d["name"]): _card(run, d) for d in run.result["drafters"] if "sparsity" in d}


def _card(run: Run, drafter: dict[str, Any]) -> dict[str, Any]:
    provenance, k = _provenance(run, drafter["name"]), tables.middle_k(run.result)
    commands = {entry["command"] for entry in provenance.values()}
    evaluations = [result for result in (run.result, run.sampled) if result]
    ks, speed, rounded = run.result["k"], _speed(run, drafter), _rounded(run, drafter["name"])
    return {
        "drafter": drafter,
        "target": run.result["target"],
        "base": run.manifest.drafter or run.result["target"],
        "k": k,
        "what": _what(drafter, commands),
        "rounded": rounded,
        "temperature": _temperature(run, drafter["name"]),
        "weights": speed["weights"] if speed else rounded["to"] if rounded else "int8",
        "sparse": drafter["pattern"] != "dense",
        "trained": "finetune" in commands,
        "same": drafter.get("route", "same") == "same",
        "conditions": "; ".join(_conditions(result) for result in evaluations),
        "header": ["", "α", *(f"MAL, K={n}" for n in ks)],
        "rows": [row for result in evaluations if (row := _row(result, drafter["name"], ks))],
        "categories": [
            [name or "(none)", f"{c['alpha']:.3f}", f"{c['mal'][str(k)]:.2f}"]
            for name, c in sorted(drafter["by_category"].items())
        ],
        "speed": speed,
        "distilled": run.distilled,
        "provenance": provenance,
        "recipe": run.recipe.strip(),
    }


def _provenance(run: Run, name: str) -> dict[str, dict[str, Any]]:
    """Provenance of the stages that led to the drafter, each before those that took it up."""
    stages = next((drafter.stages for drafter in run.manifest.drafters if drafter.name == name), [])
    folders = ("distilled", *(stage.folder for stage in stages), "eval")
    return {folder: run.provenance[folder] for folder in folders if folder in run.provenance}


def _rounded(run: Run, name: str) -> dict[str, str] | None:
    """To what (int8, int4) the stage `by` that made the drafter rounds its linears; None where it does not."""
    made = [entry for entry in _provenance(run, name).values() if entry["command"] in ("prune", "finetune")]
    inputs = made[-1].get("inputs", {}) if made else {}
    scheme = {**inputs.get("options", {}), **inputs.get("settings", {})}.get("quantize", "none")
    return None if scheme == "none" else {"to": scheme, "by": made[-1]["command"]}


def _temperature(run: Run, name: str) -> str | None:
    """The drafter's own temperature, as text, and what it gives; None where none was fitted."""
    if (own := run.drafting.get(name)) is None:
        return None
    text = f"{own['temperature']:g}"
    alpha = own.get("alpha")
    return text if alpha is None else f"{text} (α on its validation text {alpha[1]:.3f}, at 1 {alpha[0]:.3f})"


def _what(drafter: dict[str, Any], commands: set[str]) -> str:
    if drafter["pattern"] != "dense":
        kind = f"{drafter['sparsity']:.0%} of the weights of its decoder linears are 0 ({drafter['pattern']})"
        kind += "; embedding and head are dense"
    else:
        kind = "Dense; some of the decoder's layers are left out" if "drop-layers" in commands else "Dense"
    if drafter["macs_per_token"] is None:
        return f"{kind}."
    of_target = "" if drafter["c"] is None else f", {drafter['c']:.3f} of the target's"
    return f"{kind}. {drafter['macs_per_token'] / 1e6:,.0f} million MACs a token{of_target}."


def _how(result: dict[str, Any]) -> str:
    return "greedy" if result["temperature"] == 0 else f"temperature {result['temperature']:g}"


def _conditions(result: dict[str, Any]) -> str:
    loop = "simulated" if result["simulated"] else "real loop"
    return f"{result['prompts']} prompts, {result['target_tokens']} target tokens, {_how(result)} ({loop})"


def _row(result: dict[str, Any], name: str, ks: list[int]) -> list[str] | None:
    drafter = next((d for d in result["drafters"] if d["name"] == name), None)
    if drafter is None:
        return None
    mals = [drafter["k"].get(str(k)) for k in ks]
    return [
        _how(result), _with_interval(drafter["alpha"], drafter.get("alpha_interval"), 3),
        *("" if m is None else _with_interval(m["mal"], m.get("mal_interval"), 2) for m in mals),
    ]  # fmt: skip


def _with_interval(value: float, interval: list[float] | None, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text if interval is None else f"{text} ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"


def _speed(run: Run, drafter: dict[str, Any]) -> dict[str, Any] | None:
    """The packed drafter's measured speed; None where nothing was timed."""
    timing = [d for d in run.speed["drafters"] if d["name"] == drafter["name"]] if run.speed else []
    if not timing or run.speed is None:
        return None
    header, rows = tables.speed_rows({**run.speed, "drafters": timing})
    packed = run.packed.get(drafter["name"])
    if not rows or packed is None:
        return None
    return {
        "header": header[1:], "rows": [row[1:] for row in rows], "alone": tables.alone_rate({"drafters": timing}),
        "prompts": run.speed["prompts"], "megabytes": round(packed["bytes"] / 1e6), "weights": packed["weights"],
        "head_tokens": packed.get("head_tokens"), "head_weights": packed.get("head_weights", packed["weights"]),
        "embedding_weights": packed.get("embedding_weights", packed.get("head_weights", packed["weights"])),
        "head_alone": packed.get("calibration_tokens") and packed.get("mean_relative_error") is None,
        "calibration_tokens": packed.get("calibration_tokens"),
        "packed_target": run.speed["target"] != run.result["target"],
    }  # fmt: skip
