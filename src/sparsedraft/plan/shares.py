"""What a recipe's drafter keeps of the dense one: layers, weights, and the kind of its matrices when it is packed."""

from sparsedraft.maths.pattern import Pattern
from sparsedraft.plan.model import Model
from sparsedraft.recipe.recipe import Recipe
from sparsedraft.recipe.sections import Drafter


def kept_layers(recipe: Recipe, entry: Drafter, dense: Model) -> float:
    """Share of the dense drafter's layers that `entry` has; half of them where MACs are to be matched."""
    if entry.drop_layers is not None:
        count = dense.config.num_hidden_layers
        return 1 - (entry.drop_layers.layers or count / 2) / count
    start = next((other for other in recipe.drafters if other.name == entry.start), None)
    return kept_layers(recipe, start, dense) if start else 1.0


def density(recipe: Recipe, entry: Drafter) -> float | None:
    """Share of the linears' weights that `entry` is left with after pruning; None where it is not pruned."""
    if entry.prune is not None:
        how = recipe.prune_of(entry)
        return 1 - Pattern.parse(how.pattern).resolve(how.sparsity)
    start = next((other for other in recipe.drafters if other.name == entry.start), None)
    return density(recipe, start) if start and entry.drop_layers is None else None


def kind_of(recipe: Recipe, entry: Drafter) -> str:
    """What the linears of `entry` are packed as."""
    line = [recipe.prune_of(other) for other in recipe.lineage(entry) if other.prune is not None]
    if not line:
        return "dense"
    return line[0].pattern if Pattern.parse(line[0].pattern).m else "bitmask"
