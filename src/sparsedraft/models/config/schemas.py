"""The types of the fields in a checkpoint's side files, which transformers hardly checks.

So a field of the wrong type gives one sentence that names it, not an error deep inside a library.
"""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr, model_validator

from sparsedraft.base.jsonfiles import read_as

Ids = StrictInt | list[StrictInt] | None
Token = StrictStr | dict[str, Any] | None


class _Some(BaseModel):
    """A schema of the fields that are used; more may be there."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class _Quantization(_Some):
    quant_method: StrictStr | None = None

    @model_validator(mode="after")
    def _named(self) -> Self:
        older = self.model_extra or {}  # early files of bitsandbytes name no method
        if self.quant_method is None and not (older.get("load_in_8bit") or older.get("load_in_4bit")):
            raise ValueError("it names no quant_method")
        return self


class _Text(_Some):
    sliding_window: Annotated[StrictInt, Field(ge=0, lt=2**31)] | None = None


class _Config(_Text):
    architectures: list[StrictStr] | None = None
    model_type: StrictStr | None = None
    eos_token_id: Ids = None
    bos_token_id: Ids = None
    pad_token_id: Ids = None
    text_config: _Text | None = None
    quantization_config: _Quantization | None = None


class _Generation(_Some):
    eos_token_id: Ids = None
    bos_token_id: Ids = None
    pad_token_id: Ids = None


class _TokenizerConfig(_Some):
    tokenizer_class: StrictStr | None = None
    model_max_length: StrictInt | StrictFloat | None = None
    chat_template: StrictStr | list[dict[str, StrictStr]] | dict[str, StrictStr] | None = None
    added_tokens_decoder: dict[str, dict[str, Any]] | None = None
    additional_special_tokens: list[StrictStr | dict[str, Any]] | None = None
    extra_special_tokens: list[StrictStr | dict[str, Any]] | dict[str, Any] | None = None
    model_input_names: list[StrictStr] | None = None
    eos_token: Token = None
    bos_token: Token = None
    pad_token: Token = None
    unk_token: Token = None


class _Tokenizer(_Some):
    model: dict[str, Any]
    added_tokens: list[dict[str, Any]] | None = None


class _SpecialTokens(_Some):
    __pydantic_extra__: dict[str, StrictStr | dict[str, Any] | list[StrictStr | dict[str, Any]] | None]


class _Numbers(_Some):
    __pydantic_extra__: dict[str, StrictInt]


MODEL: dict[str, type[BaseModel]] = {"config.json": _Config, "generation_config.json": _Generation}
TOKENIZER: dict[str, type[BaseModel]] = {
    "tokenizer.json": _Tokenizer,
    "tokenizer_config.json": _TokenizerConfig,
    "special_tokens_map.json": _SpecialTokens,
    "added_tokens.json": _Numbers,
    "vocab.json": _Numbers,
}


def check_model(folder: Path) -> None:
    """UserError where config.json or generation_config.json cannot be what transformers reads."""
    _check(folder, MODEL)


def check_tokenizer(folder: Path) -> None:
    """UserError where a file of the tokenizer cannot be what transformers reads."""
    _check(folder, TOKENIZER)


def _check(folder: Path, schemas: dict[str, type[BaseModel]]) -> None:
    for name, schema in schemas.items():
        if (folder / name).is_file():
            stat = (folder / name).stat()
            _read(folder / name, schema, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=256)
def _read(file: Path, schema: type[BaseModel], *state: int) -> None:
    """Read once in each `state` of the file: a large tokenizer takes its time."""
    read_as(file, schema)
