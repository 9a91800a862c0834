"""Faults put into a copy of the source, one at a time, each of which the tests must catch: `make mutations`.

A mutation is a text of the source, the text that takes its place, and the tests of which one must then fail. The text
must be in the source exactly once: where the source has changed, its mutation follows. Ends with 1 where the tests
fail without a mutation, where a mutation cannot be made, or where one is missed.
"""

import argparse
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from places import ROOT

FAILED = 1  # pytest's exit code for tests that ran and failed; all others are faults of the mutation or the selection


@dataclass(frozen=True)
class Mutation:
    """`before` in src/sparsedraft becomes `after`: the `fault`. One of `tests` (of tests/) must fail."""

    fault: str
    before: str
    after: str
    tests: tuple[str, ...]


MUTATIONS = [
    Mutation(
        "a mask token sees those behind it",
        "(depths[None] <= depth[:, None])",
        "(depths[None] <= depth[:, None] + 1)",
        ("text/test_mask_tokens.py::test_one_pass_is_what_each_draft_reads_alone",),
    ),
    Mutation(
        "mask tokens are kept whose forerunners were dropped",
        "        alive = alive[alive + depth < n]",
        "        alive = torch.arange(n - depth)",
        ("text/test_mask_tokens.py::test_what_is_kept",),
    ),
    Mutation(
        "SparseGPT carries no error inside a block",
        "W1[j + 1 :].addr_(Hinv1[j, j + 1 :], Err1[j], alpha=-1)",
        "W1[j + 1 :].addr_(Hinv1[j, j + 1 :], Err1[j], alpha=0)",
        ("layerwise/test_sparsegpt.py::test_equals_the_naive_reference",),
    ),
    Mutation(
        "SparseGPT carries no error into the blocks to the right",
        "W[:, end:].addmm_(Err1.T, Hinv[i:end, end:], alpha=-1)",
        "W[:, end:].addmm_(Err1.T, Hinv[i:end, end:], alpha=0)",
        ("layerwise/test_sparsegpt.py::test_equals_the_naive_reference",),
    ),
    Mutation(
        "ten times the damping",
        "DAMPING = 0.01",
        "DAMPING = 0.1",
        ("layerwise/test_sparsegpt.py::test_equals_the_naive_reference",),
    ),
    Mutation(
        "an unstructured mask by w² alone",
        "scores = _scores(W[:, i:end], Hinv1.diagonal(), free1)",
        "scores = _scores(W[:, i:end], torch.ones(end - i), free1)",
        ("layerwise/test_sparsegpt.py::test_equals_the_naive_reference",),
    ),
    Mutation(
        "an N:M mask by w² alone",
        "scores = _scores(W1[columns].T, d[columns], free1[:, columns])",
        "scores = _scores(W1[columns].T, torch.ones(len(d))[columns], free1[:, columns])",
        ("layerwise/test_sparsegpt.py::test_equals_the_naive_reference",),
    ),
    Mutation(
        "rounding errors are not carried on",
        "Err1[j] = (W1[j] - kept) / d[j]",
        "Err1[j] = W1[j] * ~M1[j] / d[j]",
        ("layerwise/test_sparsegpt.py::test_pruning_and_rounding_at_once_equals_the_naive_reference",),
    ),
    Mutation(
        "an int4 scale that the largest weight sets",
        "best, scale = torch.where(better, gain, best), torch.where(better, candidate, scale)",
        "best, scale = torch.where(better, gain, best), (largest / -8).half().to(W.dtype)",
        ("maths/test_quantization.py::test_the_scale_is_nearly_the_best_there_is",),
    ),
    Mutation(
        "Hessians behind the dense layers, not the pruned ones",
        "        activations.advance(layer, index)\n        model.unload(index)",
        "        activations.advance(model.load(index), index)\n        model.unload(index)",
        ("stages/prune/test_prune_stage.py::test_hessians_are_those_of_the_pruned_prefix",),
    ),
    Mutation(
        "gradients of pruned weights are not masked",
        "local(parameter.grad).mul_(keep)",
        "local(parameter.grad).mul_(1)",
        ("stages/finetune/test_adamw.py::test_masked_gradients_have_the_norm_of_what_is_trained",),
    ),
    Mutation(
        "the loss counts the prompt's last token",
        "predict += range(first - 1, first - 1 + len(sample.answer_ids))",
        "predict += range(first - 2, first - 2 + len(sample.answer_ids))",
        ("stages/finetune/test_finetune.py::test_loss_is_on_the_answers_tokens_only",),
    ),
    Mutation(
        "packed samples see each other",
        "positions += range(len(sample))",
        "positions += range(len(positions), len(positions) + len(sample))",
        ("stages/finetune/test_finetune.py::test_packed_samples_do_not_see_each_other",),
    ),
    Mutation(
        "a resumed training has no moments",
        'if f"first.{name}" in stored:',
        'if f"none.{name}" in stored:',
        ("stages/finetune/test_finetune.py::test_resumed_training_equals_uninterrupted",),
    ),
    Mutation(
        "a resumed training starts its data from the beginning",
        "islice(rows, self.done, self.steps)",
        "islice(rows, 0, self.steps - self.done)",
        ("stages/finetune/test_finetune.py::test_resumed_training_equals_uninterrupted",),
    ),
    Mutation(
        "no warm-up",
        "rise = max(1, round(warmup * steps))",
        "rise = 1",
        ("stages/finetune/test_finetune.py::test_cosine_warms_up_and_ends_at_nothing",),
    ),
    Mutation(
        "gradients are not clipped",
        "accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip)",
        "accelerator.clip_grad_norm_(self.model.parameters(), 1e9)",
        ("stages/finetune/test_finetune.py::test_gradients_are_clipped_to_the_norm",),
    ),
    Mutation(
        "half the α of validation",
        '"val_alpha": agree / count',
        '"val_alpha": agree / count / 2',
        ("stages/finetune/test_finetune.py::test_validation_alpha_is_the_share_of_argmax_matches",),
    ),
    Mutation(
        "a model cut by layers keeps the settings of the first ones",
        "setattr(text, key, [value[i] for i in stay])",
        "setattr(text, key, value[: len(stay)])",
        ("stages/prune/test_drop_layers.py::test_lists_by_layer_in_the_config_are_cut",),
    ),
    Mutation(
        "the block of layers with the largest angular distance goes",
        "return int(angular_distances(states, n).argmin())",
        "return int(angular_distances(states, n).argmax())",
        ("stages/prune/test_drop_layers.py::test_the_known_redundant_block_is_found_and_dropping_it_changes_nothing",),
    ),
    Mutation(
        "one layer too few goes",
        "if not first <= i < first + n]",
        "if not first <= i < first + n - 1]",
        ("stages/prune/test_drop_layers.py::test_the_known_redundant_block_is_found_and_dropping_it_changes_nothing",),
    ),
    Mutation(
        "the target's cache is not rolled back",
        "        target.rollback([len(sequence.tokens) - 1 for sequence in sequences])",
        "        pass",
        ("speculate/test_decode.py",),
    ),
    Mutation(
        "the drafter's cache is not rolled back",
        "self.backend.rollback(common)",
        "pass",
        ("speculate/test_rows.py::test_drafts_are_what_the_drafter_says_after_the_text",),
    ),
    Mutation(
        "one draft too many is accepted",
        "return int(matches.int().cumprod(0).sum())",
        "return min(len(drafted), int(matches.int().cumprod(0).sum()) + 1)",
        ("speculate/test_accept.py::test_greedy_accepts_the_run_of_matches",),
    ),
    Mutation(
        "no stop at the end of the text",
        "end = next((i for i, token in enumerate(emitted) if token in self.eos_ids), None)",
        "end = None",
        ("speculate/test_decode.py::test_end_of_sequence_inside_a_draft_cuts_the_step",),
    ),
    Mutation(
        "the drafter's context has no limit",
        "return (limit if room is None else min(limit, room - context)) if context else 0",
        "return limit if context else 0",
        ("speculate/test_decode.py::test_a_drafter_shorter_in_context_stops_drafting_and_nothing_else",),
    ),
    Mutation(
        "after a rejection the target's p is drawn from, not the residual",
        "return i, dice.draw(residual(p[i], q[i]))",
        "return i, dice.draw(p[i])",
        ("speculate/test_exact.py::test_chain",),
    ),
    Mutation(
        "every sampled draft is accepted",
        "return float(torch.rand((), generator=self.generator, dtype=torch.float64)) * q < p",
        "return True",
        ("speculate/test_accept.py::test_real_dice_keep_a_draft_with_probability_p_over_q",),
    ),
    Mutation(
        "top-p drops its likeliest token",
        "outside = ordered.cumsum(-1) - ordered >= sampling.top_p",
        "outside = ordered.cumsum(-1) >= sampling.top_p",
        ("maths/test_sampling.py",),
    ),
    Mutation(
        "the simulation does not cut the last step",
        "emitted = min(accepted + 1, n - at)  # the last accepted draft may be the end of the sequence",
        "emitted = accepted + 1",
        ("speculate/test_lossless.py::test_greedy_equals_the_target_alone_and_simulation_the_loop",),
    ),
    Mutation(
        "the simulation drafts one token too far",
        "drafted = max(0, min(k, room - at - 1, k if context is None else context - at))\n        accepted",
        "drafted = max(0, min(k, room - at, k if context is None else context - at))\n        accepted",
        ("speculate/test_lossless.py::test_greedy_equals_the_target_alone_and_simulation_the_loop",),
    ),
    Mutation(
        "MACs without the head",
        "for matrix in by_name.values())) + dense_weights(model)",
        "for matrix in by_name.values()))",
        ("models/test_macs.py",),
    ),
    Mutation(
        "claimed zeros are believed",
        "if count_zeros(weight) < zeros or not ",
        "if False and not ",
        ("models/test_checkpoint.py::test_a_checkpoint_that_lies_is_refused",),
    ),
    Mutation(
        "rows that are written together read their padding",
        "mask = (torch.arange(width, device=self.model.device) >= width - lengths[:, None]).long()",
        "mask = torch.ones_like(ids)",
        ("writers/test_generation.py::test_finished_rows_are_refilled_while_others_go_on",),
    ),
    Mutation(
        "the drafter draws at the target's temperature",
        "drafting = self.drafting(sampling)",
        "drafting = sampling",
        ("speculate/test_own_temperature.py::test_q_is_that_of_the_temperature",),
    ),
    Mutation(
        "the simulation's q is at the target's temperature",
        "q_chances, p_chances = probabilities(q, drafting), probabilities(p, sampling)",
        "q_chances, p_chances = probabilities(q, sampling), probabilities(p, sampling)",
        ("speculate/test_expected.py::test_every_chance_of_the_real_loop",),
    ),
    Mutation(
        "a fit that looks at the coarse steps alone",
        "_steps(max(low, best - COARSE + FINE), min(high, best + COARSE - FINE), FINE)",
        "[best]",
        ("maths/test_temperature.py::test_a_drafter_that_differs_in_temperature_alone_gets_it_back",),
    ),
    Mutation(
        "what look-up drafts counts as the model's",
        "drafted, accepted = outcome.own",
        "drafted, accepted = outcome.drafted, outcome.accepted",
        ("speculate/test_mixed.py::test_what_look_up_drafts_is_no_evidence_of_the_model",),
    ),
    Mutation(
        "a split state of the suffix automaton forgets where it ended",
        "self._end.append(self._end[after])",
        "self._end.append(0)",
        ("speculate/test_suffixes.py::test_every_prefix_has_the_match_that_a_search_finds",),
    ),
    Mutation(
        "no check for leaks of evaluation prompts",
        "    if hits:\n",
        "    if False:\n",
        ("stages/distill/test_distill.py::test_refusals",),
    ),
]


def file_of(mutation: Mutation, tree: Path) -> Path:
    """The source file in `tree` that holds the mutation's text; LookupError unless it is there exactly once."""
    files = {file: file.read_text().count(mutation.before) for file in (tree / "src/sparsedraft").rglob("*.py")}
    if sum(files.values()) != 1:
        raise LookupError(f"the source holds {mutation.before!r} {sum(files.values())} times")
    return next(file for file, count in files.items() if count)


def copied(folder: Path) -> Path:
    """A copy of what the tests need, in `folder`."""
    for name in ("src", "tests", "benchmarks", "studies", "recipes", "docs"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def tested(tree: Path, tests: tuple[str, ...], log: Path) -> int:
    """pytest's exit code for the tests of `tree`, up to the first that fails: in a forked process, which imports the
    source of `tree` and finds all else imported."""
    child = os.fork()
    if not child:
        os.chdir(tree)
        for number in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.dont_write_bytecode = True  # else a file that changed within a second could be taken for the one before
        sys.meta_path[:] = [f for f in sys.meta_path if "scikit" not in type(f).__module__ + type(f).__name__.lower()]
        sys.path[:0] = [str(tree / name) for name in ("src", "benchmarks")]
        import pytest

        try:
            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)]))
        except BaseException:  # whatever it is, it does not go on as the process that forked it
            code = 3
        sys.stdout.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def missed(mutation: Mutation, tree: Path, log: Path) -> str:
    """What is wrong with the mutation or its tests; "" where it is caught."""
    file = file_of(mutation, tree)
    source = file.read_text()
    log.write_text("")
    try:
        file.write_text(source.replace(mutation.before, mutation.after))
        code = tested(tree, mutation.tests, log)
    finally:
        file.write_text(source)
    if code == FAILED:
        first = next((line for line in log.read_text().splitlines() if line.startswith("FAILED")), "")
        print(f"caught  {mutation.fault}: {first.removeprefix('FAILED tests/').partition(' ')[0]}", flush=True)
        return ""
    print(f"MISSED  {mutation.fault} (pytest ended with {code})", flush=True)
    return f"{mutation.fault}: not caught" + (f"\n{log.read_text()[-1500:]}" if code else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="the mutations whose fault holds this text")
    parser.add_argument("--skip", type=int, default=0, help="leave out the first so many")
    options = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS[options.skip :] if options.only in mutation.fault]
    impossible = []
    for mutation in chosen:
        try:
            file_of(mutation, ROOT)
        except LookupError as error:
            impossible.append(f"{mutation.fault}: cannot be made, {error}")
    if impossible:
        print(*impossible, sep="\n")
        return 1
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tree, log = copied(Path(folder)), Path(folder) / "log"
        if tested(tree, tuple(dict.fromkeys(test for m in chosen for test in m.tests)), log):
            print(f"the tests do not pass without a mutation:\n{log.read_text()[-3000:]}")
            return 1
        print(f"the tests pass without a mutation; {len(chosen)} mutations follow", flush=True)
        faults = [fault for mutation in chosen if (fault := missed(mutation, tree, log))]
    print(*faults, f"{len(chosen) - len(faults)} of {len(chosen)} caught", sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
