"""Configs that describe a plain decoder: every field is known, and the shapes of all its matrices follow from them.

Such a config needs no transformers to be understood. It is a small part of what transformers reads: of fields, values
or forms that are not listed here nothing is said.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)

from sparsedraft.base.errors import UserError
from sparsedraft.base.jsonfiles import read_object
from sparsedraft.models.config.schemas import check_model

ARCHITECTURES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}  # fmt: skip


def _float(value: object) -> float:
    """`value` if it is a float: transformers refuses a whole number in some fields."""
    if type(value) is not float:
        raise ValueError("not a float")
    return value


Size = Annotated[StrictInt, Field(gt=0, lt=2**31)]
Token = Annotated[StrictInt, Field(ge=0, lt=2**31)]
Number = Annotated[StrictInt | StrictFloat, Field(gt=0, lt=1e30)]
Float = Annotated[float, BeforeValidator(_float), Field(ge=0, lt=1e30)]
Dtype = Literal["float64", "float32", "bfloat16", "float16"]


class _Rope(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rope_type: Literal["default"]
    rope_theta: Number


class PlainConfig(BaseModel):
    """The fields of config.json for a decoder of the families in ARCHITECTURES with the usual rotary embedding."""

    model_config = ConfigDict(extra="forbid")

    model_type: Literal["llama", "mistral", "qwen2", "qwen3"]
    architectures: Annotated[list[StrictStr], Field(min_length=1, max_length=1)]
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size
    max_position_embeddings: Size
    rms_norm_eps: Float
    head_dim: Size | None = None
    hidden_act: Literal["silu"]
    rope_parameters: _Rope | None = None
    rope_theta: Number | None = None
    rope_scaling: None = None
    attention_bias: StrictBool = False
    mlp_bias: StrictBool = False
    attention_dropout: Annotated[Float, Field(lt=1)] = 0.0
    initializer_range: Annotated[Float, Field(le=1)] = 0.02
    pretraining_tp: Annotated[StrictInt, Field(ge=1, le=1)] = 1
    sliding_window: Size | None = None
    use_sliding_window: StrictBool = False
    max_window_layers: Size = 1
    layer_types: list[Literal["full_attention", "sliding_attention"]] = []
    tie_word_embeddings: StrictBool | None = None
    use_cache: StrictBool = True
    bos_token_id: Token | None = None
    eos_token_id: Token | list[Token] | None = None
    pad_token_id: Token | None = None
    pard_token: Token | None = None
    dtype: Dtype | None = None
    torch_dtype: Dtype | None = None
    transformers_version: StrictStr | None = None

    @property
    def head_size(self) -> int:
        """Numbers of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def linears(self) -> dict[str, tuple[int, int]]:
        """The shape [outputs, inputs] of every linear of the decoder layers by its name, in the model's order."""
        hidden, inner = self.hidden_size, self.intermediate_size
        heads, shared = self.num_attention_heads * self.head_size, self.num_key_value_heads * self.head_size
        layer = {
            "self_attn.q_proj": (heads, hidden), "self_attn.k_proj": (shared, hidden),
            "self_attn.v_proj": (shared, hidden), "self_attn.o_proj": (hidden, heads),
            "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
        }  # fmt: skip
        return {
            f"model.layers.{i}.{name}": shape for i in range(self.num_hidden_layers) for name, shape in layer.items()
        }


def _is_typed(config: PlainConfig) -> bool:
    """Whether each layer has one type, in a family that reads them."""
    return config.model_type in ("qwen2", "qwen3") and len(config.layer_types) == config.num_hidden_layers


def plain_config(folder: Path) -> PlainConfig | None:
    """The config of the checkpoint in `folder`; None where it is not plain, or cannot be read."""
    try:
        check_model(folder)
        fields = read_object(folder / "config.json")
        config = PlainConfig.model_validate(fields)
    except (UserError, ValidationError):
        return None
    given = all(fields[name] is not None for name in ("head_dim", "rope_theta") if name in fields)
    sound = (
        config.architectures == [ARCHITECTURES[config.model_type]]
        and config.hidden_size % config.num_attention_heads == 0
        and config.num_attention_heads % config.num_key_value_heads == 0
        and (config.head_dim is not None or config.model_type != "qwen3")
        and ("layer_types" not in fields or _is_typed(config))
        and all(token is None or token < config.vocab_size for token in (config.pad_token_id, config.pard_token))
    )
    return config if given and sound else None
