"""Training to draft in parallel: which token is the mask token, what cannot be trained so, and the rows of a step."""

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError
from sparsedraft.base.hashing import seed_of
from sparsedraft.models.config.parallel import mask_token_of
from sparsedraft.models.decoder import embedding_rows
from sparsedraft.stages.finetune.options import Settings
from sparsedraft.text.bins import Bin
from sparsedraft.text.parallel import lay_out
from sparsedraft.text.sample import Sample
from sparsedraft.writers.transformers import masks
from sparsedraft.writers.transformers.abilities import abilities, reads_whole


def check_trains(model: PreTrainedModel, settings: Settings) -> None:
    """UserError for a model that cannot read mask tokens behind the text in one pass."""
    name = type(model).__name__
    _, window = masks.windows(model)
    if window is not None and window < settings.sequence_length:
        raise UserError(
            f"--objective parallel trains whole attention, and that of {name} has a window of {window} tokens, less "
            f"than --sequence-length {settings.sequence_length}: lower that, or give --objective next-token."
        )
    if not (abilities(model).takes_masks and reads_whole(model)):
        raise UserError(
            f"--objective parallel needs attention that takes masks, its rotary frequencies the same at every length, "
            f"and {name} has none: give --objective next-token."
        )


def choose_mask_token(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Iterable[Sample],
    ends: Iterable[int],
    wanted: int | None,
) -> int:
    """The mask token of a drafter that is trained on `samples`; `ends` are the tokens that end its texts.

    `wanted`, else that which the drafter has, else the first row of the embedding that no token uses, else the last
    special token that is in no sample. UserError where there is none, and for one that is a token of the text.
    """
    rows = embedding_rows(model)
    used = {*chain.from_iterable((*sample.prompt_ids, *sample.answer_ids) for sample in samples), *ends}
    named = wanted if wanted is not None else mask_token_of(model.config, type(model).__name__)
    if named is not None:
        what = f"--mask-token {named}" if wanted is not None else f"the drafter's mask token {named}"
        if named >= rows:
            raise UserError(f"{what} is no token of the drafter, whose embedding has {rows} rows: give another.")
        if named in used:
            raise UserError(f"{what} is a token of the text: give another as --mask-token.")
        return named
    if (beyond := next((token for token in range(len(tokenizer), rows) if token not in used), None)) is not None:
        return beyond
    used |= {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    special = [token for token, added in tokenizer.added_tokens_decoder.items() if added.special and token < rows]
    free = [token for token in special if token not in used]
    if not free:
        raise UserError(
            f"--objective parallel needs a token that no text has, and the drafter's {rows} rows are all in use: give "
            "a rare one as --mask-token."
        )
    return max(free)


def note_on_console(token: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Say which token it is."""
    name = tokenizer.convert_ids_to_tokens(token) if token < len(tokenizer) else "which no text has"
    console.print(f"mask token: {token} ({name})", style="dim", markup=False)


class Layout:
    """Lays mask tokens out behind rows as `settings` say; rows stay as they are under another objective."""

    def __init__(self, model: PreTrainedModel, settings: Settings) -> None:
        self.settings = settings
        self._additive = torch.float32 if model.config._attn_implementation == "eager" else None

    def __call__(self, rows: Sequence[Bin], step: int) -> list[Bin]:
        """The rows of `step`, which decides what is dropped; that of a validation is 0."""
        s = self.settings
        if s.objective != "parallel":
            return list(rows)
        assert s.mask_token is not None, "the stage has chosen one"
        found: list[Bin] = []
        for place, row in enumerate(rows):
            generator = torch.Generator().manual_seed(seed_of(s.seed, "mask tokens", step, place))
            found.append(lay_out(row, s.mask_token, s.dropping, generator, self._additive))
        return found
