"""A target that a server runs: its text is enough to evaluate drafters, its weights are not needed here.

Under greedy decoding the loop sees nothing of a target but its text (see simulation.py and transcript.py), and a server
sends that. The text is encoded here: where the server wrote other tokens for the same text, these count as encoded.
"""

from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from transformers import PretrainedConfig

from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import context_of
from sparsedraft.models.macs import macs_of_config
from sparsedraft.models.tokenizers import templates
from sparsedraft.models.tokenizers.ends import end_ids
from sparsedraft.models.tokenizers.templates import Arguments
from sparsedraft.writers.loaded import LoadedModel
from sparsedraft.writers.protocol.writer import Writer
from sparsedraft.writers.server.address import Endpoint


class ServerTarget(LoadedModel):
    """The target behind `endpoint`, as the config and the tokenizer in `folder` describe it.

    Its MACs are those of the config, no weight pruned. Raises UserError where these cannot be read.
    """

    def __init__(self, folder: Path, endpoint: Endpoint, template_args: Arguments) -> None:
        tokenizer = templates.give(checkpoint.load_tokenizer(folder), template_args)
        super().__init__(_absent, tokenizer, end_ids(folder, tokenizer))
        self.folder, self.endpoint = folder, endpoint

    def writer(self, batch_size: int) -> Writer:
        """The server; what it decodes at once, it decides itself."""
        return self.endpoint.writer(self.tokenizer)

    @cached_property
    def config(self) -> PretrainedConfig:
        """Of the target."""
        return checkpoint.read_config(self.folder)

    @property
    def width(self) -> int:
        return int(self.config.get_text_config().vocab_size)

    @property
    def embedding_rows(self) -> int:
        return self.width

    @property
    def context(self) -> int | None:
        return context_of(self.config)

    def weights(self) -> dict[str, Any]:
        return {"macs_per_token": macs_of_config(self.config)}


def _absent() -> NoReturn:
    raise AssertionError("nothing asks a served target for its weights")
