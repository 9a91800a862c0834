"""The sizes of a model that costs follow from."""

from dataclasses import dataclass
from functools import cached_property

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from sparsedraft.models import checkpoint
from sparsedraft.models.decoder import decoder_layers, linears_of
from sparsedraft.models.macs import dense_weights, macs_of_model
from sparsedraft.models.skeleton import skeleton
from sparsedraft.models.sources import locate
from sparsedraft.stages.prune import memory
from sparsedraft.stages.prune.alps import ROUNDS, STAGES
from sparsedraft.stages.prune.refine import STEPS

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Model:
    """The sizes of a model that costs follow from; weights in counts, not bytes."""

    config: PretrainedConfig
    macs: int  # per token, dense; where a layer holds more than matrices, at most
    parameters: int
    linears: int  # weights of the decoder's matrices that a token meets
    module: PreTrainedModel  # its modules, without memory behind them

    @cached_property
    def _inputs(self) -> list[int]:
        return memory.distinct_inputs(decoder_layers(self.module)[0], self.config.hidden_size)

    @cached_property
    def hessian_flops(self) -> int:
        """Per calibration token, all layers. UserError for a model that is not made of plain linears."""
        return len(decoder_layers(self.module)) * sum(n * n for n in self._inputs)

    @cached_property
    def solve_flops(self) -> int:
        """All layers. UserError as for the Hessians."""
        layers = decoder_layers(self.module)
        first: list[nn.Linear] = list(linears_of(layers[0]).values())
        rows = sum(5 * linear.out_features * linear.in_features**2 for linear in first)
        return len(layers) * (sum(2 * n**3 for n in self._inputs) + rows)

    @cached_property
    def alps_flops(self) -> int:
        """The same of ALPS: a factor in each stage, a product in each round."""
        layers = decoder_layers(self.module)
        shapes = [(linear.out_features, linear.in_features) for linear in linears_of(layers[0]).values()]
        rounds = STAGES * ROUNDS + STEPS
        return len(layers) * sum(2 * STAGES * n**3 + 2 * rounds * out * n**2 for out, n in shapes)

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return getattr(self.config, "num_key_value_heads", None) or self.config.num_attention_heads

    @property
    def head_dim(self) -> int:
        """Numbers of a head."""
        return getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads

    def kv_bytes(self, width: int) -> int:
        """Bytes of KV cache per token and row at `width` bytes a number."""
        return 2 * self.config.num_hidden_layers * self.kv_heads * self.head_dim * width


def size_up(ref: str) -> Model:
    """The sizes of the model `ref`, from its config."""
    config = checkpoint.read_config(locate(ref, weights=False))
    model = skeleton(config)
    parameters = sum(p.numel() for p in model.parameters())
    macs = macs_of_model(model, 0.0)
    known = parameters if macs is None else macs  # no token meets more than all there is
    return Model(config.get_text_config(), known, parameters, known - dense_weights(model), model)
