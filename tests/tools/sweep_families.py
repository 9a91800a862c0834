"""By hand: every causal family of the installed transformers, tiny and random, decoded by us and by its own `generate`.

    PYTHONPATH=src:tests/support python tests/tools/sweep_families.py [FAMILY ...] [--json FILE]

Each must write the same text (alone, two prompts of different lengths at once, with a drafter of other weights, with
itself as the drafter, with trees of two branches), or be refused in one sentence. Windows, chunks and kernels are of 8
tokens, the prompts of 45 and 23. Exit code 1 where one differs or fails.
"""

import argparse
import inspect
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
import transformers as hf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sparsedraft.base.errors import UserError
from sparsedraft.maths.sampling import Sampling
from sparsedraft.models import miniature
from sparsedraft.speculate.loop.decode import generate_all
from sparsedraft.speculate.pair import Pair
from sparsedraft.speculate.policy.policies import Constant
from sparsedraft.writers.loaded import LoadedModel
from sparsedraft.writers.protocol.requests import Request
from sparsedraft.writers.transformers.completions import complete_all
from tiny import build_tokenizer

NEW, LENGTHS, GREEDY = 16, (45, 23), Sampling()
MIXED = ["conv", "full_attention", "conv", "full_attention"]
# what a config of such a family must say, and its class does not
FIELDS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "blenderbot": {"encoder_layers": 3, "decoder_layers": 3},
    "cohere_compass_text": {
        "rope_parameters": {kind: {"rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")},
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 8, "clip_qkv": 8}},
    "qwen4_exp_text": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 64, "indexer_budget": 64,
                       "indexer_compress_ratio": 4},
    "deepseek_v2": {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "n_routed_experts": 8},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "falcon_h1": {"mamba_d_head": 64, "mamba_n_heads": 16, "mamba_d_ssm": 1024},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "hunyuan_v1_dense": {"head_dim": 64},
    "hunyuan_v1_moe": {"head_dim": 64},
    "lfm2": {"layer_types": MIXED},
    "lfm2_moe": {"layer_types": MIXED, "num_dense_layers": 1},
    "ministral": {"head_dim": 64},
    "nemotron": {"num_key_value_heads": 8},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "lsh", "local", "local"]},
    "xmod": {"default_language": "en_XX"},
}  # fmt: skip
DECODER = {"is_decoder": True}  # of encoders that can be decoders


def config_of(family: str) -> tuple[type[hf.PreTrainedModel], hf.PretrainedConfig]:
    """(the class, a small config with few layers) of one family."""
    kind = getattr(hf, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family])
    made, text = CONFIG_MAPPING[family], kind.config_class
    fields = FIELDS.get(family, {})
    tries = [{"num_hidden_layers": 4, **fields}, {"n_layer": 4, **fields}, {"n_layers": 4, **fields}, fields]
    if "is_decoder" in inspect.get_annotations(made):
        tries = [{**one, **DECODER} for one in tries] + tries
    if text is not made:
        tries, made = [{"num_hidden_layers": 4}, {}], text
    first = None
    for one in tries:
        try:
            small = miniature.shrunk(made(**one))
            miniature.build(kind, small)(torch.tensor([[5, 6, 7]] * 1))
            return kind, small
        except Exception as error:
            first = first or error
    assert first is not None
    raise first


def model_of(kind: type[hf.PreTrainedModel], config: hf.PretrainedConfig, seed: int) -> hf.PreTrainedModel:
    model = miniature.build(kind, config)
    if seed:
        with torch.no_grad():
            generator = torch.Generator().manual_seed(seed)
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    model.generation_config, model.config.eos_token_id = hf.GenerationConfig(), None
    return model


def prompts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(3, 100, (n,), generator=draw).tolist() for n in LENGTHS]


def expected(model: hf.PreTrainedModel, ids: list[int]) -> list[int]:
    """What transformers' own `generate` writes."""
    mask = {"attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    if model.config.model_type in ("xlnet", "xlm", "reformer", "transfo-xl"):
        mask = {}
    made = model.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, pad_token_id=0, **mask)
    return made[0, len(ids) :].tolist()


def ways(target: hf.PreTrainedModel, other: hf.PreTrainedModel) -> dict[str, Callable[[], list[list[int]]]]:
    """How we can write the answers to the prompts, or to the first alone."""
    tokenizer, asked = build_tokenizer(), prompts()
    p, q = LoadedModel(target, tokenizer, frozenset()), LoadedModel(other, tokenizer, frozenset())

    def written(batch: int) -> list[list[int]]:
        requests = [Request(str(i), ids, NEW) for i, ids in enumerate(asked)]
        found = complete_all(target, requests, batch_size=batch, sampling=GREEDY, eos_ids=frozenset())
        return [output.token_ids for output in sorted(found, key=lambda output: output.id)]

    def decoded(drafter: LoadedModel | None, k: int, rows: int, branching: int = 1) -> list[list[int]]:
        pair = Pair.of(p, drafter, "auto", GREEDY)
        given = [pair.prompt_pair(ids) for ids in asked[:rows]]
        decoder = pair.decoder(given, Constant(k), GREEDY, branching=branching)
        return [made.tokens for made in generate_all(decoder, asked[:rows], NEW, [0] * rows)]

    return {
        "written": lambda: written(1),
        "written together": lambda: written(2),
        "decoded": lambda: decoded(None, 0, 1),
        "decoded together": lambda: decoded(None, 0, 2),
        "drafted": lambda: decoded(q, 3, 1),
        "drafted together": lambda: decoded(q, 3, 2),
        "drafted by itself": lambda: decoded(p, 3, 1),
        "trees": lambda: decoded(q, 3, 1, branching=2),
    }


def sweep(family: str) -> dict[str, str]:
    """By way: "equal", "refused: ...", or what went wrong."""
    try:
        kind, config = config_of(family)
        target, other = model_of(kind, config, 0), model_of(kind, config, 1)
    except Exception as error:
        return {"not built": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    try:
        texts = [expected(target, ids) for ids in prompts()]
    except Exception as error:
        return {"not generated": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    found = {}
    for name, way in ways(target, other).items():
        try:
            made = way()
            found[name] = "equal" if made == texts[: len(made)] else f"DIFFERENT: {made[0]} {texts[0]}"
        except UserError as error:
            found[name] = f"refused: {error}"
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            found[name] = f"FAILED {type(error).__name__}: {str(error)[:150]} ({place.filename[-40:]}:{place.lineno})"
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("families", nargs="*")
    parser.add_argument("--json")
    given = parser.parse_args()
    results = {}
    for family in given.families or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        results[family] = found = sweep(family)
        short = {k: v if v.startswith(("DIFF", "FAIL")) or k.startswith("not") else v[:7] for k, v in found.items()}
        kinds = set(short.values())
        print(family, kinds.pop() if len(kinds) == 1 and "equal" in kinds else short, flush=True)
    if given.json:
        with open(given.json, "w") as file:
            json.dump(results, file, indent=1)
    return int(any(v.startswith(("DIFF", "FAIL")) for found in results.values() for v in found.values()))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    hf.logging.set_verbosity_error()
    torch.set_num_threads(1)
    sys.exit(main())
