// engine/: tokens -> logits. READ THIS FIRST.
//
// Runs a decoder-only language model. A Chunk names the tokens to append to one sequence; a ForwardPass reads the chunks of
// several sequences at once. A token's logits have the same bits whatever is read beside it.
//
// Read in this order:
//   forward_pass.hpp   the steps of a pass (this file); forward_pass.cpp has the equation of each
//   tokens.hpp         chunks -> the tokens of a pass: what each may see, where its key lies
//   model.hpp          weights
//   sequence.hpp       keys and values of one sequence
//   session.hpp        several sequences of one model, and greedy drafts: what the bindings offer
//   attention.hpp, rotary.hpp   attention in jobs of queries; rotary embeddings
//   key_factors.hpp    what keys are divided by in caches of 8 bits
//   linear.hpp         products, over the threads of pool.hpp
#pragma once

#include <memory>

#include "engine/attention.hpp"
#include "engine/linear.hpp"
#include "engine/rotary.hpp"
#include "engine/tokens.hpp"

namespace sparsedraft {

class ForwardPass {
 public:
  // Passes that share a pool take turns.
  ForwardPass(std::shared_ptr<const Model> model, std::shared_ptr<Pool> pool, const Kernels& kernels);

  // Appends each chunk to its sequence. The logits [sum of Chunk::logits, logits_stride()] in the order of the chunks, valid until
  // the next pass; null where no chunk asks for any. Throws std::invalid_argument for ids outside of the vocabulary or more tokens
  // than the context holds, std::bad_alloc where memory does not suffice; no sequence has changed then.
  const float* run(const std::vector<Chunk>& chunks);

  // From now on only these tiles of the head are multiplied; the other logits mean nothing. Empty: all.
  void use_head(std::vector<TileRange> tiles) { head_tiles_ = std::move(tiles); }
  const std::vector<TileRange>& head_tiles() const { return head_tiles_; }

  size_t logits_stride() const { return padded(model_->head->rows, kRows4); }
  const Model& model() const { return *model_; }

 private:
  // The steps of `run`, in this order; the two blocks once for each layer.
  void prepare(const std::vector<Chunk>& chunks);
  void embed();
  void attention_block(const Layer& layer, size_t index, const std::vector<Chunk>& chunks);
  void mlp_block(const Layer& layer);
  const float* logits();

  // The steps of the attention block.
  void project_qkv(const Layer& layer);
  void cache_keys_and_values(const Layer& layer, size_t index);
  void keep_wanted(const std::vector<Chunk>& chunks);
  void attend(const Layer& layer, size_t index);
  void attend(const Layer& layer, size_t index, const AttentionJob& job, AttentionQueries& queries);

  void multiply(ActivationBuffer& x, const std::vector<Product>& products);
  void norm(const float* x, const std::vector<float>& weight, float* out, size_t n) const;
  void norm_hidden(const std::vector<float>& weight);
  void add_to_hidden(const std::vector<float>& after_norm);
  template <class Work>
  void for_each_token(Work work);

  std::shared_ptr<const Model> model_;
  std::shared_ptr<Pool> shared_pool_;
  Pool& pool_;
  const Kernels& kernels_;

  // Of the pass at hand, one row a token; from the last layer's attention on, of the tokens whose logits are wanted. Strides leave room for whole tiles of rows.
  std::vector<Token> tokens_;
  std::vector<float> hidden_;                    // [tokens, hidden]
  ActivationBuffer normed_, attended_, gate_;    // inputs of products
  FineInputs fine_;
  std::vector<float> q_, k_, v_;                 // [tokens, q_stride_], [tokens, kv_stride_]
  std::vector<float> up_;                        // [tokens, up_stride_]
  std::vector<float> projected_;                 // [tokens, hidden_stride_]: what a block gives
  std::vector<float> logits_;                    // [logits, logits_stride()]
  std::vector<TileRange> head_tiles_;
  RotaryTable rotary_;
  std::vector<AttentionJob> attention_jobs_;
  size_t q_stride_, kv_stride_, hidden_stride_, up_stride_;
};

}  // namespace sparsedraft
