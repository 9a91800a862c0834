"""A model with its tokenizer, and what runs it."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from sparsedraft.base.console import console
from sparsedraft.base.errors import Unsupported, UserError
from sparsedraft.models import checkpoint, claims
from sparsedraft.models.config import drafting
from sparsedraft.models.config.drafting import Drafting
from sparsedraft.models.config.parallel import mask_token_of
from sparsedraft.models.decoder import context_length, embedding_rows
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.ends import end_ids, end_ids_of, end_of_turn
from sparsedraft.models.tokenizers.templates import Arguments
from sparsedraft.native import extension as native
from sparsedraft.native.architecture import unsupported
from sparsedraft.native.cache_size import CACHES
from sparsedraft.native.cost import cost_of_model, cost_of_native_model
from sparsedraft.native.loading import load
from sparsedraft.native.model import NativeModel, native_model
from sparsedraft.native.packed_folder import is_packed
from sparsedraft.native.session import Session, shared_pool
from sparsedraft.writers.native import NativeWriter
from sparsedraft.writers.prefix import PrefixCache
from sparsedraft.writers.protocol.backend import Backend, TreeBackend
from sparsedraft.writers.protocol.writer import Writer
from sparsedraft.writers.transformers.abilities import abilities, backend_of, reads_whole
from sparsedraft.writers.transformers.writer import TransformersWriter

RUNTIMES = ("auto", "native", "transformers")

NOTHING_SAID = Drafting()


class LoadedModel:
    """A model with its tokenizer, run by the native engine where there is a `native` model, else by transformers.

    `model` is the transformers model, or makes it when it is first used. `drafts`: how it drafts best. From that come
    `temperature`, where it is accepted most, times the target's; and `window`, what it reads of a long text, (window,
    sinks), None for all. `source`: the folder of its checkpoint, if it has one.
    `mask_token`: what it reads in the place of drafts where it drafts in parallel (models.config.parallel).
    """

    def __init__(
        self,
        model: PreTrainedModel | Callable[[], PreTrainedModel],
        tokenizer: PreTrainedTokenizerBase,
        eos_ids: frozenset[int],
        native: NativeModel | None = None,
        source: Path | None = None,
        drafts: Drafting = NOTHING_SAID,
        mask_token: int | None = None,
    ) -> None:
        self._model, self.tokenizer, self.eos_ids, self.native = model, tokenizer, eos_ids, native
        self.temperature, self.window = drafts.factor, drafts.reads
        self.source, self.mask_token = source, mask_token
        self._cached: PrefixCache | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "LoadedModel":
        """A transformers model that is in memory, with its tokenizer; its texts end as its configs and the tokenizer
        say."""
        mask_token = mask_token_of(model.config, tokenizer.name_or_path)
        return cls(model, tokenizer, end_ids_of(model, tokenizer), mask_token=mask_token)

    @classmethod
    def load(
        cls,
        ref: str | Path,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        runtime: str = "auto",
        cache: str = "int16",
        template_args: Arguments | None = None,
    ) -> "LoadedModel":
        """The model `ref` (an id, a folder, packed or not, a .gguf file).

        `runtime`: native (weights as they are stored, float32 arithmetic), transformers, or auto: native where the
        extension was built, the engine knows the architecture, and device and dtype are its own. UserError where the
        mask is not what the checkpoint claims, and for a runtime that cannot run it. `cache`: see native_model.
        """
        if runtime not in RUNTIMES:
            raise UserError(f"--runtime {runtime} is not known: choose one of {', '.join(RUNTIMES)}.")
        if cache not in CACHES:
            raise UserError(f"--cache {cache} is not known: choose one of {', '.join(CACHES)}.")
        if cache != "int16" and runtime == "transformers":
            raise UserError(f"--cache {cache} is the native engine's: leave it out, or --runtime transformers.")
        kind, where = checkpoint.dtype_named(dtype), checkpoint.device_named(device)
        tokenizer, folder = templates.give(checkpoint.load_tokenizer(ref), template_args or {}), checkpoint.find(ref)
        native_fits = where.type == "cpu" and kind == torch.float32
        if runtime == "native" and not native_fits:
            raise UserError(
                f"--runtime native computes in float32 on the CPU, not in {dtype} on {device}: leave these out."
            )
        config, ends, own = checkpoint.read_config(folder), end_ids(folder, tokenizer), drafting.of(folder)
        mask_token = mask_token_of(config, folder)
        how: dict[str, Any] = {"source": folder, "drafts": own, "mask_token": mask_token}
        if runtime == "native" or (
            runtime == "auto" and native_fits and not unsupported(config) and native.available()
        ):
            try:
                built = native_model(folder, cache)
                return cls(lambda: _checked(folder, kind, where), tokenizer, ends, built, **how)
            except Unsupported as error:  # found in the weights, not in the config
                if runtime == "native" or cache != "int16":
                    raise
                console.print(f"{error} (auto runs it with transformers)", style="dim", markup=False, soft_wrap=True)
        if cache != "int16":
            raise UserError(
                f"--cache {cache} needs the native engine, which does not run model {ref} here: leave it out."
            )
        return cls(_checked(folder, kind, where), tokenizer, ends, **how)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The transformers model."""
        return self._model if isinstance(self._model, PreTrainedModel) else self._model()

    def backend(self, rows: int) -> Backend:
        """A Backend of so many rows, which reads trees where `takes_trees` says so."""
        if self.native:
            return Session(self.native, rows, pool=shared_pool(torch.get_num_threads()))
        return backend_of(self.model, rows)

    def writer(self, batch_size: int) -> Writer:
        """What writes whole answers with this model, by the same arithmetic as `backend`."""
        if self.native:
            return NativeWriter(self.native, self.tokenizer, self.eos_ids, batch_size)
        return TransformersWriter(self.model, self.tokenizer, self.eos_ids, batch_size)

    def open_backend(self, rows: int) -> PrefixCache:
        """A new Backend without a sequence, which admits up to `rows` at once. See `keeps_prefixes`."""
        found = PrefixCache(cast(TreeBackend, self.backend(rows)))
        found.vacate()
        return found

    def cached_backend(self, rows: int = 1) -> PrefixCache:
        """The same Backend each time. It looks empty, and skips reading what its cache still holds. One use at a time.

        It skips nothing where the state of a prefix depends on what followed it.
        """
        if self._cached is None or self._cached.rows != rows or not self.keeps_prefixes:
            self._cached = PrefixCache(cast(TreeBackend, self.backend(rows)))
        self._cached.begin()
        return self._cached

    @property
    def width(self) -> int:
        """Tokens that the head knows; those that a trimmed head leaves out count, too."""
        if self.native:
            return self.native.handle.vocabulary if self.native.head_ids is not None else self.native.handle.head_rows
        weight: torch.Tensor = self.model.get_output_embeddings().weight
        return weight.shape[0]

    @property
    def embedding_rows(self) -> int:
        """Rows of the embedding: one more than the largest token id that the model can read."""
        return self.native.handle.vocabulary if self.native else embedding_rows(self.model)

    @property
    def context(self) -> int | None:
        """Tokens that fit in the context; None where the config names no limit."""
        return (self.native.handle.max_length or None) if self.native else context_length(self.model)

    @cached_property
    def takes_back(self) -> bool:
        """Whether the last tokens can be removed from the cache, which drafting and verifying need."""
        return True if self.native else abilities(self.model).takes_back

    def check_takes_back(self, use: str) -> None:
        """UserError where it does not. `use` completes the sentence: what needs it, and what to do instead."""
        if not self.takes_back:
            raise UserError(_no_way_back(self.tokenizer.name_or_path, type(self.model).__name__, use))

    @cached_property
    def takes_masks(self) -> bool:
        """Whether several sequences can be read in one pass."""
        return True if self.native else abilities(self.model).takes_masks

    @cached_property
    def takes_trees(self) -> bool:
        """Whether trees of drafts can be read in one pass."""
        return self.takes_masks and self.keeps_prefixes

    @cached_property
    def keeps_prefixes(self) -> bool:
        """Whether the state after a prefix depends neither on what follows nor on how it was read."""
        return self.native is not None or reads_whole(self.model)

    def end_of_turn(self) -> int | None:
        """The token that ends an answer."""
        if self.tokenizer.chat_template is None:  # a base model
            return self.tokenizer.eos_token_id
        ids = end_of_turn(self.tokenizer)
        return ids[0] if ids else None

    def weights(self) -> dict[str, Any]:
        """Cost and sparsity: macs_per_token, nonzero_params, sparsity (of the decoder linears, and of the whole).

        None for what the model's structure does not tell (see models.matrices).
        """
        return cost_of_native_model(self.native) if self.native else cost_of_model(self.model)


def check_drafts(folder: Path) -> None:
    """UserError where the model in `folder` cannot draft, without loading it."""
    config = checkpoint.read_config(folder)
    if not unsupported(config.get_text_config()):
        return
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    if not abilities(model).takes_back:
        raise UserError(_no_way_back(str(folder), type(model).__name__, "draft: choose another drafter"))


def _no_way_back(name: str, kind: str, use: str) -> str:
    return f"model {name} ({kind}) keeps a state from which no token can be taken back, so it cannot {use}."


def _checked(folder: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    model = load(folder, dtype=dtype, device=device)
    if not is_packed(folder):  # whose zeros are proved as they are unpacked
        claims.check_claims(model, folder)
    return model
