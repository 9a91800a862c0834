"""The `report` stage: a run or data folder in, report.html (self-contained) and report.md with its plots out.

Of a run, also cards/DRAFTER.md: a model card each.
"""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError
from markupsafe import Markup
from matplotlib.figure import Figure

from sparsedraft.base import artifact
from sparsedraft.base.console import visible
from sparsedraft.base.errors import UserError, first_line
from sparsedraft.stages.report import data, plots, tables
from sparsedraft.stages.report.cards import cards
from sparsedraft.stages.report.load import Run, load
from sparsedraft.stages.report.options import ReportOptions

# what a figure of the wrong type, or one that is not there, breaks on its way to the page
UNSHOWABLE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, TemplateError)
TERMS = {
    "MAL": "mean accepted length: tokens emitted per step, the target's own included; plain decoding is 1.",
    "step": "one verification pass of the target over K drafted tokens.",
    "α": "mean over target-written positions of Σ min(p, q); under greedy decoding, the share of equal argmaxes.",
    "MACs": "multiply-accumulates per token: the non-zero weights of all linears, lm_head included and dense.",
    "improvement factor": "MAL / (1 + K·c), where c is the drafter's share of the target's MACs: the theoretical "
    "speed-up of a machine on which verifying K+1 tokens costs one step and zeros cost nothing.",
    "c, v": "as measured: seconds of drafting a token, and of verifying a step, each in plain steps of the target.",
}


def report(options: ReportOptions) -> dict[str, Any]:
    """Write FOLDER/report for a finished run or distilled data; {"report", "markdown"}: the paths.

    Raises UserError if the folder is neither.
    """
    folder = options.folder
    if (artifact.read_provenance(folder) or {}).get("command") == "distill":
        return _data_report(folder, options.overwrite)
    run = load(folder)
    inputs: dict[str, object] = {"run": run.sources, "recipe": run.recipe}
    return _make(folder, inputs, "report", lambda: (_context(run), _figures(run)), options.overwrite)


def _data_report(folder: Path, overwrite: bool) -> dict[str, Any]:
    shards = sorted(folder.glob("data-*.parquet"))

    def content() -> tuple[dict[str, Any], dict[str, tuple[str, Figure]]]:
        page = data.read_page(folder)
        size = sum(file.stat().st_size for file in shards)
        more = {"name": folder.name, "bytes_per_token": size / page.result["target_tokens"]}
        return data.context(page) | more, data.figures(page)

    return _make(folder, {"data": [*shards, folder / "result.json"]}, "data", content, overwrite)


def _make(
    folder: Path,
    inputs: dict[str, object],
    template: str,
    content: Callable[[], tuple[dict[str, Any], dict[str, tuple[str, Figure]]]],
    overwrite: bool,
) -> dict[str, Any]:
    """The artifact `folder`/report: what the `template`s make of the context and the figures of `content`."""
    out = folder / "report"

    def build(work: Path) -> dict[str, Any]:
        try:
            render(work)
        except UNSHOWABLE as error:
            raise UserError(
                f"{folder} cannot be shown ({type(error).__name__}: {first_line(error)}): a result of it is not what "
                "this version writes; make it again."
            ) from None
        return {"report": str(out / "report.html"), "markdown": str(out / "report.md")}

    def render(work: Path) -> None:
        context, figures = content()
        for name, (_, figure) in figures.items():
            (work / f"{name}.png").write_bytes(plots.png(figure))
            (work / f"{name}.svg").write_text(plots.svg(figure, name), encoding="utf-8")
        inline = {name: (title, Markup(plots.svg(figure, name))) for name, (title, figure) in figures.items()}
        titles = {name: title for name, (title, _) in figures.items()}
        html, markdown = (_template(f"{template}.{kind}.j2") for kind in ("html", "md"))
        (work / "report.html").write_text(html.render(context, plots=inline), encoding="utf-8")
        (work / "report.md").write_text(visible(markdown.render(context, plots=titles)), encoding="utf-8")
        for name, card in context.get("cards", {}).items():
            (work / "cards").mkdir(exist_ok=True)
            text = visible(_template("card.md.j2").render(card))  # Markdown is read on terminals, too
            (work / "cards" / f"{name}.md").write_text(text, encoding="utf-8")

    return artifact.make(out, "report", inputs, build, overwrite=overwrite, tolerance=artifact.Tolerance(anything=True))


def _template(name: str):
    loader = PackageLoader("sparsedraft.stages.report", "templates")
    environment = Environment(
        loader=loader,
        autoescape=name.endswith(".html.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals |= {"markdown": tables.markdown, "macs_text": tables.macs_text}
    environment.filters |= {"quote": shlex.quote, "json": json.dumps}  # `tojson` would write quotes as HTML has them
    return environment.get_template(name)


def _context(run: Run) -> dict[str, Any]:
    """What both templates show."""
    result, k = run.result, tables.middle_k(run.result)
    header, rows = tables.main_rows(result)
    names, categories = tables.category_rows(result, k)
    values = [v for _, row in categories for v in row]
    low, high = min(values), max(values)
    drafted = tables.headline(result, run.manifest.baseline)
    gained = tables.speed_headline(run.speed, _is_packed(run)) if run.speed else None
    return {
        "headline": gained or drafted,
        "drafted": drafted if gained else None,
        "serve": serve_command(run),
        "result": result,
        "k": k,
        "header": header,
        "rows": rows,
        "category_header": names,
        "categories": categories,
        "shade": lambda value: 0 if high == low else (value - low) / (high - low),
        "example": run.example,
        "distilled": run.distilled,
        "sampled": _second(run.sampled) if run.sampled else None,
        "packed_eval": _second(run.packed_eval) if run.packed_eval else None,
        "speed": _speed(run.speed) if run.speed else None,
        "provenance": run.provenance,
        "recipe": run.recipe,
        "terms": TERMS,
        "cards": cards(run),
    }


def _is_packed(run: Run) -> bool:
    """Whether the target that was timed is a packed one, as the drafters are."""
    return run.speed is not None and run.speed["target"] != run.result["target"]


def serve_command(run: Run) -> str | None:
    """The command that serves the fastest drafter's target with it; None where no packed pair was timed."""
    if run.speed is None or not _is_packed(run) or (best := tables.fastest(run.speed)) is None:
        return None
    model, beside = best[0]["path"], best[0].get("lookup")
    words = ["sparsedraft", "serve", run.speed["target"], "--drafter", model, *(["--lookup"] if beside else [])]
    return shlex.join(words)


def _second(result: dict[str, Any]) -> dict[str, Any]:
    """What the templates show of an evaluation beside the first: under sampling, or of the packed drafters."""
    header, rows = tables.main_rows(result)
    return {"header": header, "rows": rows, **{key: result[key] for key in ("temperature", "prompts", "simulated")}}


def _speed(evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """What the templates show of the packed drafters' measured speed."""
    header, rows = tables.speed_rows(evaluation)
    if not rows:
        return None
    return {"header": header, "rows": rows, "alone": tables.alone_rate(evaluation), "prompts": evaluation["prompts"]}


def _figures(run: Run) -> dict[str, tuple[str, Figure]]:
    """Every plot by file name, with its title."""
    k, names = tables.middle_k(run.result), [d["name"] for d in run.result["drafters"]]
    figures = {}
    if any(d["macs_vs_dense"] is not None for d in run.result["drafters"]):
        figures["mal_vs_macs"] = ("MAL against MACs", plots.mal_against_macs(run.result, k))
    figures["by_position"] = ("Accepted tokens by position", plots.accepted_by_position(run.result))
    if run.curves:
        loss = plots.fine_tuning(run.curves, "loss", "training loss (mean of 5 steps)", names)
        alpha = plots.fine_tuning(run.curves, "val_alpha", "validation α", names)
        figures["finetune_loss"] = ("Fine-tuning: training loss", loss)
        figures["finetune_alpha"] = ("Fine-tuning: validation α", alpha)
    return figures
