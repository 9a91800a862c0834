"""`sparsedraft run`: nothing but the stages, one after the other, over one recipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsedraft.base.console import console
from sparsedraft.base.fields import Calibration
from sparsedraft.base.files import write_atomic
from sparsedraft.models import checkpoint
from sparsedraft.models.config.sparsity import groups_of
from sparsedraft.models.names import BESIDE
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.vocab import same_tokens
from sparsedraft.recipe.checks import check, evaluations, target_folder
from sparsedraft.recipe.reading import dump
from sparsedraft.recipe.recipe import Recipe
from sparsedraft.recipe.sections import Drafter, Eval, Speed
from sparsedraft.stages.distill.options import DistillOptions, DistillSettings
from sparsedraft.stages.distill.stage import distill
from sparsedraft.stages.distill.stored import Stored
from sparsedraft.stages.evaluate.options import EvaluateOptions, EvaluateSettings
from sparsedraft.stages.evaluate.stage import evaluate
from sparsedraft.stages.finetune.options import FinetuneOptions, FinetuneSettings
from sparsedraft.stages.finetune.stage import finetune
from sparsedraft.stages.pack.options import PackOptions
from sparsedraft.stages.pack.stage import pack
from sparsedraft.stages.prune.drop_layers import drop_layers
from sparsedraft.stages.prune.options import DropLayersOptions, PruneOptions, PruneSettings
from sparsedraft.stages.prune.stage import prune
from sparsedraft.stages.report import manifest
from sparsedraft.stages.report.options import ReportOptions
from sparsedraft.stages.report.stage import report
from sparsedraft.stages.report.tables import demo_table, speed_table


def run_recipe(recipe: Recipe, out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Make every artifact of `recipe` in the folder `out`; return eval's result with the report's path added.

    Finished stages are skipped and an interrupted one goes on. Raises UserError as the stages do.
    """
    check(recipe, out)  # before any work: what comes out after an hour helps nobody
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "recipe.yaml").exists():  # a run that the stages refuse must not change a finished one
        _write(recipe, out)
    run = _Run(recipe, out, overwrite)
    epoch = run.distill()
    named = run.make_drafters(epoch)
    results = run.evaluate(named)
    timed = None
    if recipe.speed:
        target, packed = run.pack(recipe.speed, named)
        if recipe.speed.acceptance:
            results["packed-eval"] = run.evaluate_packed(target, packed)
        timed = run.time(recipe.speed, target, packed)
    _write(recipe, out)
    _list(recipe, out, finished=True)
    console.rule("report")
    shown = report(ReportOptions(folder=out, overwrite=overwrite))
    _show(results, timed, shown["report"])
    more = {part: result for part, result in {**results, "speed": timed}.items() if part != "eval" and result}
    return {**results["eval"], "report": shown["report"], **more}


@dataclass(frozen=True)
class _Run:
    """The stages of a recipe, whose artifacts lie in `out`."""

    recipe: Recipe
    out: Path
    overwrite: bool

    @property
    def data(self) -> Path:
        return self.out / "distilled"

    def distill(self) -> int:
        """The data; how many tokens there are of it."""
        recipe, how = self.recipe, self.recipe.distill
        target = recipe.target
        if how.weights:
            target = self.packed_target(f"packed/.target-{how.weights}", {"weights": how.weights})
        evaluation = tuple(dict.fromkeys(section.prompts for section in evaluations(recipe).values()))
        console.rule("distill")
        if how.stored is not None:
            stored = Stored(Path(how.stored), target, how.again, evaluation, self.overwrite)
            taken = stored.take_over(self.data)
            return int(taken["prompt_tokens"] + taken["target_tokens"])
        written = distill(
            DistillOptions(
                **how.part(DistillSettings),
                target=target,
                prompts=how.prompts,
                out=self.data,
                evaluation=evaluation,
                allow_overlap=recipe.allow_overlap,
                template_args=recipe.template_args,
                seed=recipe.seed,
                device=recipe.device,
                dtype=recipe.dtype,
                overwrite=self.overwrite,
            )
        )
        tokens: int = written["prompt_tokens"] + written["target_tokens"]
        return tokens

    def make_drafters(self, epoch: int) -> list[tuple[str, str]]:
        """Every drafter, of `epoch` tokens of data; (name, folder) of those that are evaluated."""
        recipe, made = self.recipe, dict[str, str]()
        common = {
            "device": recipe.device, "dtype": recipe.dtype, "overwrite": self.overwrite,
            "template_args": _rendering(recipe),
        }  # fmt: skip
        for entry in recipe.ordered:
            folder = self.out / "drafters" / entry.slug
            made[entry.name] = make_drafter(recipe, entry, made, self.data, epoch, folder, common)
            _list(recipe, self.out)
        return [(entry.name, made[entry.name]) for entry in recipe.drafters if entry.report]

    def evaluate(self, named: list[tuple[str, str]]) -> dict[str, dict[str, Any]]:
        """The result of each evaluation of the drafters, by the recipe's part."""
        results = {}
        for part, section in evaluations(self.recipe).items():
            console.rule(part)
            results[part] = evaluate(self._evaluation(part, section, self.recipe.target, named))
            _list(self.recipe, self.out)
        return results

    def evaluate_packed(self, target: str, packed: list[tuple[str, str]]) -> dict[str, Any]:
        """The first evaluation again, of what is timed: on the CPU, in the native engine's arithmetic."""
        console.rule("eval, packed")
        options = self._evaluation("packed-eval", self.recipe.eval, target, packed)
        here = {"device": "cpu", "dtype": "float32", "url": None, "served_name": None}
        return evaluate(options.model_copy(update=here))

    def _evaluation(self, part: str, section: Eval, target: str, named: list[tuple[str, str]]) -> EvaluateOptions:
        return EvaluateOptions(
            **section.part(EvaluateSettings),
            target=target,
            drafters=named,
            prompts=section.prompts,
            out=self.out / part,
            template_args=self.recipe.template_args,
            seed=self.recipe.seed,
            device=self.recipe.device,
            dtype=section.dtype or self.recipe.dtype,
            overwrite=self.overwrite,
        )

    def pack(self, how: Speed, named: list[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
        """(the target, the drafters by name), packed as `how` says."""
        packed, folder = {}, self.out / "packed"
        slugs = {entry.name: entry.slug for entry in self.recipe.drafters}
        trim = {"head_data": str(self.data), **how.trim} if how.trim else {}
        for name, model in named:
            console.rule(f"{name}: pack")
            out = folder / slugs[name]
            rounding = self._rounding(how, model, _rendering(self.recipe))
            pack(PackOptions(model=model, out=out, overwrite=self.overwrite, **rounding, **trim))
            packed[name] = str(out)
        target = self.recipe.target
        if how.pack_target:
            target = self.packed_target(target_folder(how), self._rounding(how, target, {}))
        return target, [*packed.items()]

    def packed_target(self, folder: str, rounding: dict[str, Any]) -> str:
        """The target, packed to `folder` of the run."""
        console.rule("target: pack")
        out = self.out / folder
        pack(PackOptions(model=self.recipe.target, out=out, overwrite=self.overwrite, **rounding))
        return str(out)

    def _rounding(self, how: Speed, model: str, template_args: dict[str, Any]) -> dict[str, Any]:
        """How the weights of `model` are rounded: options of `pack`. Of one that `prune` has rounded, its head."""
        rounding = how.model_dump(include={"weights", "head_weights", "embedding_weights"})
        head_alone = bool(groups_of(checkpoint.find(model)))
        if how.calibration_tokens is None or (head_alone and how.head_weights != "int4"):
            return rounding
        return rounding | {
            "calibration": str(self.data), "tokens": how.calibration_tokens,
            "sequence_length": self.recipe.prune.sequence_length, "template_args": template_args,
            "seed": self.recipe.seed, "device": self.recipe.device, "dtype": self.recipe.dtype,
        }  # fmt: skip

    def time(self, how: Speed, target: str, packed: list[tuple[str, str]]) -> dict[str, Any]:
        """Let every packed drafter draft for the target in the real loop."""
        console.rule("speed")
        beside = [(name + BESIDE, folder + BESIDE) for name, folder in packed] if how.lookup else []
        return evaluate(
            EvaluateOptions(
                target=target,
                drafters=[*packed, *beside],
                prompts=self.recipe.eval.prompts,
                out=self.out / "speed",
                k=how.k,
                limit=how.limit,
                spread=self.recipe.eval.spread,
                max_new_tokens=how.max_new_tokens,
                batch_size=how.limit,
                **self.recipe.eval.reading,
                seed=self.recipe.seed,
                template_args=self.recipe.template_args,
                overwrite=self.overwrite,
            )
        )


def _show(results: dict[str, dict[str, Any]], timed: dict[str, Any] | None, report_path: str) -> None:
    """The results as tables for people."""
    for result in results.values():
        console.print(demo_table(result))
    if timed is not None and (table := speed_table(timed)) is not None:
        console.print(table)
    console.print(f"report: {report_path}")


def _rendering(recipe: Recipe) -> dict[str, Any]:
    """The template's arguments for the drafters' stages: they apply one where they have another tokenizer alone."""
    if not recipe.template_args:
        return {}
    target, dense = (checkpoint.load_tokenizer(ref) for ref in (recipe.target, recipe.dense))
    return {} if same_tokens(target, dense) else templates.used(dense, recipe.template_args)


def _write(recipe: Recipe, out: Path) -> None:
    with write_atomic(out / "recipe.yaml") as temporary:
        temporary.write_text(dump(recipe), encoding="utf-8")


def _list(recipe: Recipe, out: Path, *, finished: bool = False) -> None:
    """Write the manifest: what exists of the artifacts of `recipe`, until it is `finished` beside what was listed."""
    drafters = []
    for entry in recipe.drafters:
        line = reversed(recipe.lineage(entry))
        stages = [f"drafters/{ancestor.slug}/{stage}" for ancestor in line for stage in ancestor.stages]
        packed = f"packed/{entry.slug}" if recipe.speed and entry.report else None
        drafters.append(manifest.Drafter.at(out, entry.name, stages, packed))
    plain = recipe.model_dump()
    listing = manifest.Manifest(
        drafter=recipe.drafter,
        baseline=manifest.baseline_of(plain, [entry.name for entry in recipe.drafters if entry.report]),
        parts=manifest.parts_at(out, ["distilled", "eval", *manifest.optional_parts(plain)]),
        drafters=drafters,
    )
    manifest.write(out, listing, finished=finished)


def make_drafter(
    recipe: Recipe,
    entry: Drafter,
    made: dict[str, str],
    data: Path,
    epoch: int,
    folder: Path,
    common: dict[str, Any],
) -> str:
    """Make one drafter of the recipe by its stages, in `folder`; return the folder of the last.

    `made`: the drafters that it may start from, by name; `epoch`: tokens of the data; `common`: device, dtype and
    overwrite, as the stages take them.
    """
    at = made[entry.start] if entry.start else recipe.dense
    chain, budgets = recipe.prunings(entry), recipe.budgets(entry, epoch)
    for number, how in enumerate(chain, 1):
        last = number == len(chain)
        mark = "" if last else f"-{number}"  # the steps of `gradual` before the last
        console.rule(f"{entry.name}: prune{mark}")
        prune(
            PruneOptions(
                model=at,
                out=folder / f"pruned{mark}",
                calibration=str(data),
                **how.part(PruneSettings),
                seed=recipe.seed,
                **common,
            )
        )
        at = str(folder / f"pruned{mark}")
        if not last:
            at = _finetune(recipe, entry, at, data, folder / f"finetuned{mark}", budgets[number - 1], common)
    if entry.drop_layers is not None:
        console.rule(f"{entry.name}: drop-layers")
        matched = entry.drop_layers.match_macs
        drop_layers(
            DropLayersOptions(
                model=at,
                out=folder / "layer-dropped",
                calibration=str(data),
                layers=entry.drop_layers.layers,
                match_macs=made[matched] if matched else None,
                **recipe.prune.part(Calibration),
                seed=recipe.seed,
                **common,
            )
        )
        at = str(folder / "layer-dropped")
    return _finetune(recipe, entry, at, data, folder / "finetuned", budgets[-1], common) if entry.trained else at


def _finetune(
    recipe: Recipe, entry: Drafter, at: str, data: Path, out: Path, tokens: int | None, common: dict[str, Any]
) -> str:
    """Fine-tune the checkpoint `at` on `tokens` tokens as the recipe says for `entry`; return the new one's folder."""
    console.rule(f"{entry.name}: {out.name.replace('finetuned', 'finetune')}")
    how = recipe.finetune_of(entry)
    finetune(
        FinetuneOptions(
            **{**how.part(FinetuneSettings), "tokens": tokens},
            drafter=at,
            data=data,
            out=out,
            teacher=recipe.target if recipe.needs_teacher(entry) else None,
            feature_teacher=recipe.dense if how.feature_weight else None,
            seed=recipe.seed,
            **{**common, "dtype": how.dtype or recipe.dtype},
        )
    )
    return str(out)
