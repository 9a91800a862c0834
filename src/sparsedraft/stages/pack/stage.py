"""The stage `pack`: a checkpoint -> a packed folder of the same model, without its zeros, its values rounded."""

from collections.abc import Container
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sparsedraft.base import artifact
from sparsedraft.base.errors import UserError
from sparsedraft.base.fields import Calibration
from sparsedraft.layerwise import calibration
from sparsedraft.layerwise.sparsegpt import ROUNDING_DAMPING
from sparsedraft.layerwise.streamed import Streamed
from sparsedraft.models import checkpoint, quantizers, shards
from sparsedraft.models.config.sparsity import groups_of
from sparsedraft.models.decoder import decoder_linears
from sparsedraft.models.reload import check_loads
from sparsedraft.models.shards import Shards
from sparsedraft.models.skeleton import skeleton
from sparsedraft.models.tokenizers import templates
from sparsedraft.native.packed_folder import is_packed
from sparsedraft.native.q6_k import check_possible
from sparsedraft.native.quantizer import register
from sparsedraft.stages.pack.calibrated import CalibratedCodes
from sparsedraft.stages.pack.compressed import FORMAT as COMPRESSED
from sparsedraft.stages.pack.compressed import CompressedWriter
from sparsedraft.stages.pack.head import frequent_tokens
from sparsedraft.stages.pack.kept import block_file
from sparsedraft.stages.pack.options import PackOptions
from sparsedraft.stages.pack.temperature import TemperatureFit, note
from sparsedraft.stages.pack.writer import PackedWriter, Types


def pack(options: PackOptions) -> dict[str, Any]:
    """Pack the checkpoint `options.model` into the folder `options.out`.

    `weights`: the type of the values: f16, bf16, int8 with a scale for each row, int4 with one for each group of
    inputs, or stored: those of the GGUF file `options.model`, none of which is rounded again. `head_weights`,
    `embedding_weights`: the same of these; where they are called otherwise than embed_tokens and lm_head they stay
    "as stored", which the result says. Biases and norms stay, too. `activations`: bits of the activations that int8
    is multiplied with where it lies dense or by a mask. A head that is tied to the embedding is stored beside it where
    the two are rounded differently; the packed model's config.json then ties nothing.
    `head_tokens` trims the head to the tokens most frequent in the distilled data `head_data` (and those that end a
    text); the answers' tokens that it lost are counted. With `head_follows` it stays whole, and a draft looks at those
    rows and at those of the tokens that the text has so far.
    int4 is rounded by least squares; with `calibration` so that the outputs of layers change least on that text, a
    decoder layer in memory at a time, and the head last. A checkpoint that `prune --quantize int4` wrote keeps its
    codes.
    The drafter's own temperature (see models.config.drafting) is taken along, or fitted on `calibrate_temperature`. So
    is its window, or that of `drafter_window` and `drafter_sinks` is noted: what drafters read where nothing is asked.
    Raises UserError for a checkpoint that lies about its mask, values that do not fit, a head that cannot be trimmed.
    """
    folder = checkpoint.find(options.model)
    shards.side_files(folder)  # refused now, not at the end
    check_packable(options.model, folder)
    head_weights = options.head_weights or ("int8" if options.weights == "int4" else options.weights)
    activations = options.activations or (8 if options.weights == "int4" else 16)
    types = Types(options.weights, head_weights, options.embedding_weights or head_weights, activations)
    kept = block_file(options.model) if options.weights == "stored" else None
    tokenizer = _calibration_tokenizer(options, folder, head_weights)
    fits = TemperatureFit(folder, options) if options.calibrate_temperature else None
    kind = CompressedWriter if options.format == COMPRESSED else PackedWriter
    writer = kind(folder, types, tokenizer is not None, kept)
    head_on_text = writer.head_on_text() is not None  # what forbids that is said before any work is done

    def build(work: Path) -> dict[str, Any]:
        codes, rounding = (None, {}) if tokenizer is None else _calibrate(options, writer, work, tokenizer)
        ids, head = None, {}
        if options.head_tokens is not None and options.head_data is not None:
            ids, missed = frequent_tokens(folder, options.head_data, options.head_tokens, writer.vocabulary())
            head = {"head_tokens": len(ids), "head_missed": missed}
            if options.head_follows:
                head["head_follows"] = True
        result = writer.write(work, ids, codes, follows=options.head_follows) | head | rounding
        if options.format == COMPRESSED:  # loading it takes a library that we do not need
            return result
        register()  # so that transformers loads the packed folder
        check_loads(work)
        return result | note(folder, work, fits, options)

    inputs = {"model": folder, **_inputs(options, types, head_on_text), **(fits.inputs() if fits else {})}
    reads = (options.model, options.head_data, options.calibration, options.calibrate_temperature, options.teacher)
    return artifact.make(
        options.out, "pack", inputs, build, seed=options.seed, overwrite=options.overwrite, reads=reads
    )


def _inputs(options: PackOptions, types: Types, head_on_text: bool) -> dict[str, object]:
    """What the result is made of, beside the checkpoint; folders of older versions stay as they are."""
    inputs: dict[str, object] = {
        "weights": options.weights, "head_tokens": options.head_tokens,
        "head_data": Path(options.head_data) if options.head_data else None,
    }  # fmt: skip
    if options.format == COMPRESSED:
        inputs["format"] = COMPRESSED
    if options.head_follows:
        inputs["head_follows"] = True
    if options.drafter_window is not None:
        inputs["drafter_window"] = [options.drafter_window, options.drafter_sinks]
    if types.head != options.weights:
        inputs["head_weights"] = types.head
    if types.embedding != types.head:
        inputs["embedding_weights"] = types.embedding
    if types.activations != 16:
        inputs["activations"] = types.activations
    if options.calibration is not None:
        inputs |= {
            "calibration": calibration.source(options.calibration),
            "damping": ROUNDING_DAMPING,
            **templates.inputs(options.template_args),
            "options": {**options.part(Calibration), "device": options.device, "dtype": options.dtype},
        }
    if head_on_text:  # older versions rounded it by least squares
        inputs["head"] = "on text"
    return inputs


def _calibration_tokenizer(options: PackOptions, folder: Path, head_weights: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the calibration text, None where there is none; UserError where it cannot be used."""
    if options.calibration is None:
        return None
    if groups_of(folder) and head_weights != "int4":
        raise UserError(
            f"checkpoint {folder} is rounded to int4 already and keeps its codes: leave out --calibration, or round "
            "its head on the text with --head-weights int4."
        )
    return calibration.tokenizer_for(folder, options.calibration, options.template_args)


def _calibrate(
    options: PackOptions, writer: PackedWriter, work: Path, tokenizer: PreTrainedTokenizerBase
) -> tuple[CalibratedCodes, dict[str, Any]]:
    """(the codes of int4, rounded on the calibration text; what the result says of them)."""
    assert options.calibration is not None
    model = Streamed(
        writer.folder, dtype=checkpoint.dtype_named(options.dtype), device=checkpoint.device_named(options.device)
    )
    ids = calibration.sequences(
        options.calibration, tokenizer, options.tokens, options.sequence_length, options.seed, model.model
    )
    group_of = None if groups_of(writer.folder) else writer.group_of
    codes = CalibratedCodes(model, ids, work, group_of, writer.claim["linears"], writer.head_on_text())
    return codes, {"calibration_tokens": ids.numel(), "mean_relative_error": codes.mean_relative_error()}


def check_packable(model: str, folder: Path, ends: Container[str | None] = ()) -> None:
    """Raise UserError for a checkpoint whose matrices are no plain linears: packed, quantised, or fused experts; and
    for one whose embedding and head cannot be of the types `ends`."""
    if is_packed(folder):
        raise UserError(f"model {model} is packed already: pack the checkpoint it came from.")
    config = checkpoint.read_config(folder)
    quantizers.check_plain(model, config, Shards(folder), "pack")
    decoder_linears(skeleton(config))
    if "q6_k" in ends:
        check_possible(config.get_text_config().hidden_size, f"model {model}:")
