"""The stage `drop-layers`: a model and calibration text in, the same model without its least needed layers out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsedraft.base import artifact
from sparsedraft.base.errors import UserError
from sparsedraft.base.fields import Calibration
from sparsedraft.base.jsonfiles import write_json
from sparsedraft.layerwise import calibration
from sparsedraft.layerwise.streamed import Streamed
from sparsedraft.models import census, checkpoint, claims, shards
from sparsedraft.models.config import older_names
from sparsedraft.models.decoder import decoder_layers
from sparsedraft.models.reload import check_loads
from sparsedraft.models.skeleton import skeleton
from sparsedraft.models.tokenizers import templates
from sparsedraft.stages.prune import layer_drop
from sparsedraft.stages.prune.options import DropLayersOptions


def drop_layers(options: DropLayersOptions) -> dict[str, Any]:
    """Drop the block of consecutive layers with the smallest angular distance; write the checkpoint `options.out`.

    `layers` says how many, or `match_macs` names a checkpoint whose MACs the rest should come nearest to. One decoder
    layer is in memory at a time. Raises UserError for a number that leaves no layer, and where dropping nothing
    comes nearest.
    """
    folder = checkpoint.find(options.model)
    shards.side_files(folder)  # refused now, not at the end
    goal = checkpoint.find(options.match_macs) if options.match_macs else None
    tokenizer = calibration.tokenizer_for(folder, options.calibration, options.template_args)

    def build(work: Path) -> dict[str, Any]:
        model = Streamed(
            folder, dtype=checkpoint.dtype_named(options.dtype), device=checkpoint.device_named(options.device)
        )
        _check_count(options.layers, len(model))
        ids = calibration.sequences(
            options.calibration, tokenizer, options.tokens, options.sequence_length, options.seed, model.model
        )
        macs = _Macs.of(model, census.macs(goal) if goal else None)
        if macs.is_at_goal():  # known before the walk
            raise _nothing(options, macs)
        walk = work / ".walk"
        walk.mkdir(exist_ok=True)
        states = layer_drop.last_token_states(model, ids, walk)
        n = options.layers or layer_drop.layers_to_match(states, macs.by_layer, macs.rest, macs.goal or 0)
        if n == 0:
            raise _nothing(options, macs)
        distances = layer_drop.angular_distances(states, n)
        first = layer_drop.block(states, n)
        _write(model, work, first, n)
        check_loads(work)
        return {
            "model": options.model,
            "layers_before": len(model),
            "dropped": n,
            "first_dropped": first,
            "angular_distance": float(distances[first]),
            "angular_distances": distances.tolist(),
            "calibration_tokens": ids.numel(),
            "macs_before": macs.total,
            "macs_per_token": census.macs(work),
            "macs_wanted": macs.goal,
        }

    reads = (options.model, options.calibration, options.match_macs)
    return artifact.make(
        options.out,
        "drop-layers",
        _inputs(options, folder, goal),
        build,
        seed=options.seed,
        overwrite=options.overwrite,
        reads=reads,
    )


def _inputs(options: DropLayersOptions, folder: Path, goal: Path | None) -> dict[str, object]:
    """What the checkpoint depends on."""
    return {
        "model": folder,
        "calibration": calibration.source(options.calibration),
        **templates.inputs(options.template_args),
        "match_macs": goal,
        "options": {
            "layers": options.layers,
            **options.part(Calibration),
            "device": options.device,
            "dtype": options.dtype,
        },
    }


@dataclass(frozen=True)
class _Macs:
    """MACs a token of the whole model and of each layer, and the goal for what is left, if there is one."""

    total: int
    by_layer: list[int]
    goal: int | None

    @classmethod
    def of(cls, model: Streamed, goal: int | None) -> "_Macs":
        """The MACs of `model`, without loading it."""
        rows = list(census.records(model.folder, model.shards))
        by_layer = [0] * len(model)
        for (index, _, _), row in zip(model.linears(), rows, strict=True):
            by_layer[index] += row.size - row.zeros
        return cls(census.macs(model.folder, rows), by_layer, goal)

    @property
    def rest(self) -> int:
        """MACs outside the layers: the head's."""
        return self.total - sum(self.by_layer)

    def is_at_goal(self) -> bool:
        """Whether the whole model is nearer to the goal than without its cheapest layer."""
        return self.goal is not None and self.total - self.goal < min(self.by_layer) / 2


def _check_count(layers: int | None, count: int) -> None:
    if layers is not None and layers >= count:
        mend = f"give at most {count - 1}" if count > 1 else "the model has but one"
        raise UserError(f"--layers {layers} of {count} would leave none: {mend}.")


def _nothing(options: DropLayersOptions, macs: _Macs) -> UserError:
    return UserError(
        f"--match-macs {options.match_macs} has {macs.goal} MACs a token, to which {options.model} with {macs.total} "
        "comes nearest as it is: there is nothing to drop."
    )


def _write(model: Streamed, work: Path, first: int, n: int) -> None:
    """Write the checkpoint without the layers first … first+n-1; the layers behind them take their numbers."""
    stay = [i for i in range(len(model)) if not first <= i < first + n]
    config = checkpoint.read_config(model.folder)
    layer_drop.cut_config(config, stay)
    layer_drop.check_layers(model.layers, [*decoder_layers(skeleton(config))], stay)
    prefix = _stored_prefix(model)
    names = {new: old for old in model.shards.files if (new := _renumbered(old, prefix, stay))}
    shards.write(work, {new: (model.shards, old) for new, old in names.items()})
    shards.copy_side_files(model.folder, work)
    config.save_pretrained(work)
    older_names.complete(work)
    if claim := claims.claim_of(model.folder):  # a sparse drafter keeps the mask of the layers that stay
        write_json(work / "sparsity.json", _cut_claim(claim, f"{model.prefix}.", stay, work))


def _stored_prefix(model: Streamed) -> str:
    """What the names of the layers begin with in the shards, such as "model.layers."."""
    _, name, _ = next(model.linears())
    full = f"{model.linear_name(0, name)}.weight"
    inside = full.removeprefix(f"{model.prefix}.0.")
    return model.stored_name(full).removesuffix(inside).removesuffix("0.")


def _renumbered(name: str, prefix: str, stay: list[int]) -> str | None:
    """The new name of a tensor; None for one of a layer that goes."""
    if not name.startswith(prefix):
        return name
    index, _, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{stay.index(int(index))}.{rest}" if int(index) in stay else None


def _cut_claim(claim: dict[str, Any], prefix: str, stay: list[int], work: Path) -> dict[str, Any]:
    """The claim of zeros of the layers that stay, in the checkpoint `work`."""
    for key in ("linears", "patterns"):
        if key in claim:
            claim[key] = {new: v for old, v in claim[key].items() if (new := _renumbered(old, prefix, stay))}
    size = sum(row.size for row in census.records(work) if row.name in claim["linears"])
    return {**claim, "sparsity": sum(claim["linears"].values()) / size}
