"""The endpoint: a server's address and how patiently it is asked."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from transformers import PreTrainedTokenizerBase

from sparsedraft.base.console import console
from sparsedraft.base.errors import UserError
from sparsedraft.models.tokenizers import templates
from sparsedraft.writers.server.endpoint import EndpointWriter
from sparsedraft.writers.server.secret import shown
from sparsedraft.writers.server.server import Server

LONGEST = 86400.0  # seconds that may be waited for a server


@dataclass(frozen=True)
class Endpoint:
    """A server's address (".../v1"), the target's name there, calls at once, and patience (see Server)."""

    url: str = field(repr=False)  # it may hold a password
    served: str
    concurrency: int = 16
    timeout: float = 300.0
    retries: int = 6
    retry_wait: float = 0.5

    def __post_init__(self) -> None:
        if not _is_http(self.url):
            raise UserError(f"--url {shown(self.url)} is no http address: give one such as http://localhost:8000/v1.")
        for option, seconds in (("timeout", self.timeout), ("retry-wait", self.retry_wait)):
            if not seconds <= LONGEST:
                raise UserError(f"--{option} {seconds:g} is not possible: give at most {LONGEST:g} seconds, a day.")

    def writer(self, tokenizer: PreTrainedTokenizerBase, skip: bool | None = None) -> EndpointWriter:
        """The server as a Writer; it is asked whether it is there. `skip`: see EndpointWriter."""
        server = Server(self.url, timeout=self.timeout, retries=self.retries, wait=self.retry_wait)
        self.tell_day(tokenizer)
        return EndpointWriter(server, self.served, tokenizer, skip)

    def tell_day(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Print which day the server's template tells the model, if that is not the pinned one."""
        if day := templates.day_there(tokenizer):
            console.print(
                f"the target's chat template tells the model the day, which cannot be set at a server: answers are of "
                f"{day}, while prompts are stored, and run here, with {templates.DATE_STRING}",
                soft_wrap=True,
            )


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half a bracket, or no port
        return False
