"""The stage `drop-layers`: a model and calibration text in, the same model without its least needed layers out."""

from pathlib import Path
from typing import Any

from sparsedraft.base import artifact
from sparsedraft.base.errors import UserError
from sparsedraft.base.fields import Calibration
from sparsedraft.base.jsonfiles import write_json
from sparsedraft.models import census, checkpoint, claims, shards
from sparsedraft.models.config import older_names
from sparsedraft.models.decoder import decoder_layers
from sparsedraft.models.reload import check_loads
from sparsedraft.models.skeleton import skeleton
from sparsedraft.models.tokenizers import templates
from sparsedraft.stages.prune import calibration as text
from sparsedraft.stages.prune import layer_drop
from sparsedraft.stages.prune.options import DropLayersOptions
from sparsedraft.stages.prune.stage import calibration_source
from sparsedraft.stages.prune.streamed import Streamed


def drop_layers(options: DropLayersOptions) -> dict[str, Any]:
    """Drop the block of consecutive layers with the smallest angular distance; write the checkpoint `options.out`.

    `layers` says how many, or `match_macs` names a checkpoint whose MACs the rest should come nearest to. One decoder
    layer is in memory at a time. Raises UserError for a number that leaves no layer, and where dropping nothing
    comes nearest.
    """
    layers, match_macs = options.layers, options.match_macs
    folder = checkpoint.find(options.model)
    shards.side_files(folder)  # refused now, not at the end
    matched = checkpoint.find(match_macs) if match_macs else None
    tokenizer = text.tokenizer_for(folder, options.calibration, options.template_args)

    def build(work: Path) -> dict[str, Any]:
        streamed = Streamed(
            folder, dtype=checkpoint.dtype_named(options.dtype), device=checkpoint.device_named(options.device)
        )
        count = len(streamed)
        if layers is not None and layers >= count:
            mend = f"give at most {count - 1}" if count > 1 else "the model has but one"
            raise UserError(f"--layers {layers} of {count} would leave none: {mend}.")
        ids = text.sequences(
            options.calibration, tokenizer, options.tokens, options.sequence_length, options.seed, streamed.model
        )
        rows = list(census.records(folder, streamed.shards))
        before = census.macs(folder, rows)
        by_layer = [0] * count
        for (index, _, _), row in zip(streamed.linears(), rows, strict=True):
            by_layer[index] += row.size - row.zeros
        wanted = census.macs(matched) if matched else None
        nothing = UserError(
            f"--match-macs {match_macs} has {wanted} MACs a token, to which {options.model} with {before} comes "
            "nearest as it is: there is nothing to drop."
        )
        if wanted is not None and before - wanted < min(by_layer) / 2:  # known before the walk
            raise nothing
        states = layer_drop.last_token_states(streamed, ids, _made(work / ".walk"))
        n = layers or layer_drop.layers_to_match(states, by_layer, before - sum(by_layer), wanted or 0)
        if n == 0:
            raise nothing
        distances = layer_drop.angular_distances(states, n)
        first = layer_drop.block(states, n)
        _write(streamed, work, first, n)
        check_loads(work)
        return {
            "model": options.model,
            "layers_before": count,
            "dropped": n,
            "first_dropped": first,
            "angular_distance": float(distances[first]),
            "angular_distances": distances.tolist(),
            "calibration_tokens": ids.numel(),
            "macs_before": before,
            "macs_per_token": census.macs(work),
            "macs_wanted": wanted,
        }

    inputs: dict[str, object] = {
        "model": folder,
        "calibration": calibration_source(options.calibration),
        **templates.inputs(options.template_args),
        "match_macs": matched,
        "options": {
            "layers": layers,
            **options.part(Calibration),
            "device": options.device,
            "dtype": options.dtype,
        },
    }
    reads = (options.model, options.calibration, match_macs)
    return artifact.make(
        options.out, "drop-layers", inputs, build, seed=options.seed, overwrite=options.overwrite, reads=reads
    )


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def _write(model: Streamed, work: Path, first: int, n: int) -> None:
    """The checkpoint without the layers first … first+n-1; those behind move up, in names, config and claimed zeros."""
    stay = [i for i in range(len(model)) if not first <= i < first + n]
    config = checkpoint.read_config(model.folder)
    layer_drop.cut_config(config, stay)
    layer_drop.check_layers(model.layers, [*decoder_layers(skeleton(config))], stay)
    _, name, _ = next(model.linears())
    known = f"{model.linear_name(0, name)}.weight"
    added = model.stored_name(known).removesuffix(known.removeprefix(f"{model.prefix}.0."))  # "model.layers.0."
    stored_prefix = added.removesuffix("0.")

    def renamed(stored: str, prefix: str) -> str | None:
        if not stored.startswith(prefix):
            return stored
        index, _, rest = stored.removeprefix(prefix).partition(".")
        return f"{prefix}{stay.index(int(index))}.{rest}" if int(index) in stay else None

    names = {new: old for old in model.shards.files if (new := renamed(old, stored_prefix))}
    shards.write(work, {new: (model.shards, old) for new, old in names.items()})
    shards.copy_side_files(model.folder, work)
    config.save_pretrained(work)
    older_names.complete(work)
    claim = claims.claim_of(model.folder)
    if claim:  # a sparse drafter that loses layers keeps the mask of those that stay
        prefix = f"{model.prefix}."
        for key in ("linears", "patterns"):
            if key in claim:
                claim[key] = {new: v for old, v in claim[key].items() if (new := renamed(old, prefix))}
        size = sum(row.size for row in census.records(work) if row.name in claim["linears"])
        claim["sparsity"] = sum(claim["linears"].values()) / size
        write_json(work / "sparsity.json", claim)
