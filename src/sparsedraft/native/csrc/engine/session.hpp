// Several sequences of one model, each with its caches: what the Python side calls a session.
#pragma once

#include "engine/forward_pass.hpp"

namespace sparsedraft {

class Session {
 public:
  // Throws std::invalid_argument unless there are 1 to 4096 `sequences`.
  Session(std::shared_ptr<const Model> model, std::shared_ptr<Pool> pool, int sequences, const Kernels& kernels);

  // Appends ids[i] to sequence i (which may get none); logits[i] of them are wanted. `parents`: the ids are the last nodes of a tree
  // behind the only sequence. Returns all logits [sum of logits, head rows], one behind the other. Throws as ForwardPass::run.
  std::unique_ptr<float[]> forward(std::vector<std::vector<int64_t>> ids, const std::vector<int>& logits,
                                   const std::vector<int32_t>* parents);
  // Reads ids[i] into sequence i and drafts counts[i] tokens greedily, all sequences in the same passes; none of those without a draft
  // reads. Row r of the head stands for token map[r] (no map: r). Where only tiles of the head are in use, sequence i drafts of those
  // rows that looks[i] says (none: of all). Ends where logits hold NaN or infinity, with a last token of -1.
  std::vector<std::vector<int64_t>> draft(std::vector<std::vector<int64_t>> ids, const std::vector<int>& counts, const int64_t* map,
                                          const std::vector<const bool*>& looks);

  void rollback(const std::vector<size_t>& lengths);  // keep the first lengths[i] tokens of sequence i
  void keep(size_t length, const std::vector<int32_t>& nodes);  // see Sequence::keep; of the only sequence
  void select(const std::vector<size_t>& which);  // keep these sequences, in this order; throws before any has moved
  std::vector<size_t> lengths() const;
  size_t size() const { return sequences_.size(); }
  // From now on logits are those of these tiles of the head alone, which ascend, one behind the other. Throws std::invalid_argument
  // for tiles that are not there or do not ascend.
  void use_head(const std::vector<size_t>& tiles);
  size_t head_rows() const { return head_rows_; }  // of the logits of a token

 private:
  Sequence& only();
  void copy_logits(const float* found, float* out) const;  // of a token: those of the head's tiles in use
  std::shared_ptr<const Model> model_;
  ForwardPass pass_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
  size_t head_rows_;
  std::vector<float> drafted_logits_;
};

}  // namespace sparsedraft
