"""The result of an evaluation, made up."""


def drafter(name: str, mal: float, alpha: float, macs: float) -> dict:
    k = {
        str(n): {"mal": mal + n / 10, "acceptance_rate": 0.5, "histogram": [4] + [1] * n, "steps": 4 + n, "tokens": 30,
                 "improvement_factor": mal / (1 + n * macs)}
        for n in (3, 5, 8)
    }  # fmt: skip
    return {
        "name": name, "path": f"runs/x/drafters/{name}/finetuned", "k": k, "alpha": alpha,
        "macs_per_token": int(macs * 1e6),
        "macs_vs_dense": macs, "nonzero_params": 5, "sparsity": 0.5, "sparsity_whole_model": 0.4, "pattern": "2:4",
        "c": macs, "v": 1.0, "break_even": {"3": 0.5, "5": 0.6, "8": None}, "best_k": 3,
        "by_category": {c: {"alpha": alpha, "sequences": 2, "mal": dict.fromkeys(k, mal)} for c in ("coding", "a<b")},
    }  # fmt: skip


RESULT = {
    "target": "some/target", "temperature": 0.0, "simulated": True, "prompts": 4, "sequences": 5, "target_tokens": 1234,
    "near_ties": 0, "k": [3, 5, 8], "dense_macs_per_token": 1_000_000,
    "drafters": [drafter("layer-pruned+distilled", 1.2, 0.31, 0.61), drafter("sd2-50", 2.4, 0.71, 0.605)],
}  # fmt: skip
