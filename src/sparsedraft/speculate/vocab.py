"""Tokenizers of target and drafter: today they must be the same; text-level and intersection routes come with UAG."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sparsedraft.errors import UserError


def check_same_head(target: PreTrainedModel, drafter: PreTrainedModel, drafter_name: str) -> None:
    """Raise UserError unless both write logits of one width (some families pad their heads by model size)."""
    p, q = (model.get_output_embeddings().weight.shape[0] for model in (target, drafter))
    if p != q:
        raise UserError(
            f"drafter {drafter_name} has a head of {q} rows and the target one of {p}: such pairs are not "
            "supported yet, choose models whose vocab_size is equal."
        )


def check_same_tokenizer(
    target: PreTrainedTokenizerBase, drafter: PreTrainedTokenizerBase, target_name: str, drafter_name: str
) -> None:
    """Raise UserError unless both have the same tokens under the same ids."""
    p, q = target.get_vocab(), drafter.get_vocab()
    if p == q:
        return
    if len(p) != len(q):
        difference = f"{len(p)} tokens against {len(q)}"
    else:
        token = min((t for t in p if q.get(t) != p[t]), key=lambda t: p[t])
        difference = f"first at id {p[token]}, {token!r}"
    raise UserError(
        f"target {target_name} and drafter {drafter_name} have different tokenizers ({difference}): "
        "choose models of one family, drafting across tokenizers is not supported yet."
    )
