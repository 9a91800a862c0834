// Attention of the tokens of a pass, in jobs: queries that read the same keys go together, so that keys are read once for all.
#pragma once

#include "engine/tokens.hpp"
#include "kernels/kernels.hpp"

namespace sparsedraft {

// Queries of neighbouring tokens of one sequence and of neighbouring heads that share a head of keys; up to kMostQueries. The bits
// do not depend on which queries go together.
struct AttentionJob {
  size_t first, last;  // tokens
  size_t head, heads;  // of queries
};

// All heads of all tokens, in jobs that keep so many threads busy.
std::vector<AttentionJob> attention_jobs(const std::vector<Token>& tokens, const Config& config, int threads);

// The queries of a job, and what they give. One for each thread.
class AttentionQueries {
 public:
  // Begins a job: of a layer that sees `window` tokens (0: all).
  void begin(const AttentionJob& job, const std::vector<Token>& tokens, const Config& config, int window);
  // The next query [head_dim], token by token and head by head.
  void add(const float* query);
  // Runs them over the keys and values that `head` of layer `index` has of their sequence.
  void attend(const Kernels& kernels, size_t index, size_t head);
  // What query `i` found [head_dim].
  const float* found(size_t i) const { return out_.data() + i * width_; }

 private:
  KeyBlocks seen(size_t index, size_t head);

  const Token* token_ = nullptr;  // the first
  size_t dim_ = 0;
  size_t stride_ = 0;  // of queries
  size_t width_ = 0;   // of what they find
  float score_scale_ = 1;
  std::vector<int16_t> words_;       // [queries, stride_]
  std::vector<float> scales_, out_;  // [queries], [queries, width_]
  std::vector<int32_t> begin_, end_;  // [queries]
  LineBytes copies_;                 // the last blocks of what a tree's node sees
  LineBytes wide_;                   // a block of 8 bits as one of 16
};

}  // namespace sparsedraft
