"""What a recipe's stages would refuse after long work, refused before any."""

from pathlib import Path

from sparsedraft.base.errors import UserError
from sparsedraft.base.places import check_apart
from sparsedraft.layerwise import arguments
from sparsedraft.layerwise.streamed import Streamed
from sparsedraft.models import checkpoint
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.vocab import same_tokens
from sparsedraft.recipe.recipe import Recipe
from sparsedraft.recipe.sections import Eval, Speed
from sparsedraft.stages.pack.stage import check_packable
from sparsedraft.text import dataset, prompts
from sparsedraft.text.overlap import check_no_overlap


def check(recipe: Recipe, out: Path) -> None:
    """UserError for what the stages would refuse after long work."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "recipe.yaml").exists())):
        raise UserError(f"--out {out} holds something else: name an empty or a new folder.")
    for place in _places(recipe, out):
        check_apart(place, {}, _read(recipe))
    evaluation = {section.prompts: prompts.read(section.prompts) for section in evaluations(recipe).values()}
    how = recipe.distill
    if how.stored is not None:
        dataset.check(Path(how.stored))
    elif not recipe.allow_overlap and how.prompts is not None:
        training = prompts.read(how.prompts, [] if how.skip_bad else None)[: how.limit]
        for section_prompts in evaluation.values():
            check_no_overlap(training, section_prompts)
    _check_tokenizers(recipe)
    templates.check(checkpoint.load_tokenizer(recipe.target), recipe.template_args)
    if not (out / "distilled").exists():
        _check_layers(recipe)


def _read(recipe: Recipe) -> list[str | None]:
    """What the recipe reads that is not made by it."""
    prompts_of = [section.prompts for section in evaluations(recipe).values()]
    return [recipe.target, recipe.drafter, recipe.distill.stored or recipe.distill.prompts, *prompts_of]


def _places(recipe: Recipe, out: Path) -> list[Path]:
    """The folders in `out` that a run may make, those of one drafter together."""
    slugs = [entry.slug for entry in recipe.drafters]
    parts = ["distilled", "eval", "sampled", "speed", "packed-eval", "report"]
    parts += [f"packed/.target-{recipe.distill.weights}"] if recipe.distill.weights else []
    parts += [target_folder(recipe.speed)] if recipe.speed else []
    return [out / part for part in (*parts, *(f"{kind}/{slug}" for kind in ("drafters", "packed") for slug in slugs))]


def target_folder(how: Speed) -> str:
    """Where a run has the target that is timed; another place than that of the one that writes the data, if it may
    differ."""
    marks = [how.weights, *([f"head-{how.head_weights}"] if how.head_weights else [])]
    marks += [f"embedding-{how.embedding_weights}"] if how.embedding_weights else []
    marks += ["calibrated"] if how.calibration_tokens is not None else []
    return f"packed/.target-{'-'.join(marks)}"


def evaluations(recipe: Recipe) -> dict[str, Eval]:
    return {"eval": recipe.eval, **({"sampled": recipe.sampled} if recipe.sampled else {})}


def _check_tokenizers(recipe: Recipe) -> None:
    """UserError for what a drafter of another tokenizer than the target's cannot do."""
    if same_tokens(*(checkpoint.load_tokenizer(ref) for ref in (recipe.target, recipe.dense))):
        return
    other = "and the drafter has another tokenizer than the target"
    if recipe.speed is not None and recipe.speed.head_tokens is not None:
        raise UserError(f"speed.head_tokens trims by the target's tokens, {other}: leave it out.")
    for part, section in evaluations(recipe).items():
        if section.uag == "off":
            raise UserError(f"{part}.uag is off, {other}: set it to auto, realign or intersection.")
        if section.tree > 1:
            raise UserError(f"{part}.tree {section.tree} needs one tokenizer, {other}: leave it out.")
    for entry in recipe.drafters:
        if entry.trained and (loss := recipe.finetune_of(entry).loss) != "nll":
            raise UserError(
                f"drafter '{entry.name}' has the loss {loss}, which compares tokens, {other}: set it to nll."
            )


def _check_layers(recipe: Recipe) -> None:
    """UserError for models that are to be pruned, cut or packed, and whose layers do not allow it."""
    calibrated = recipe.speed is not None and recipe.speed.calibration_tokens is not None
    cut = any(recipe.prunings(entry) or entry.drop_layers is not None for entry in recipe.drafters)
    walked = {recipe.dense} if cut or calibrated else set()
    if calibrated and recipe.speed and recipe.speed.pack_target:
        walked.add(recipe.target)
    dtype, device = checkpoint.dtype_named(recipe.dtype), checkpoint.device_named(recipe.device)
    for model in sorted(walked):
        arguments.check_model(Streamed(checkpoint.find(model), dtype=dtype, device=device))
    packed = {recipe.dense} if recipe.speed else set()
    if recipe.distill.weights or (recipe.speed and recipe.speed.pack_target):
        packed.add(recipe.target)
    for model in sorted(packed):
        timed = recipe.speed is not None and (model == recipe.dense or recipe.speed.pack_target)
        ends = (recipe.speed.head_weights, recipe.speed.embedding_weights) if recipe.speed and timed else ()
        check_packable(model, checkpoint.find(model), ends)
