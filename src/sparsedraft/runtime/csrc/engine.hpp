// A decoder-only language model: weights that are read only, and sequences with a cache that rolls back.
#pragma once

#include <memory>
#include <optional>

#include "linear.hpp"

namespace sparsedraft {

struct Layer {
  std::shared_ptr<const Matrix> q, k, v, o, gate, up, down;
  std::vector<float> q_bias, k_bias, v_bias, o_bias;      // empty: none
  std::vector<float> input_norm, attention_norm;           // before attention, before the MLP
  std::vector<float> after_attention, after_mlp;           // Gemma's, else empty
  std::vector<float> q_norm, k_norm;                       // of each head, else empty
  int window = 0;                                          // tokens that attention sees; 0: all
  int rope = 0;                                            // which of Config::inv_freq
};

struct Config {
  size_t hidden = 0, vocabulary = 0, heads = 0, kv_heads = 0, head_dim = 0, intermediate = 0;
  size_t max_length = 0;                      // 0: no limit
  float eps = 1e-6f, attention_scale = 0, embedding_scale = 1, softcap = 0;
  bool gelu = false, norm_one_more = false;   // Gemma
  std::vector<std::vector<float>> inv_freq;   // of each kind of rotary embedding: [head_dim / 2]
  std::vector<float> rope_scaling;            // what each multiplies cos and sin with
};

// An embedding table as the checkpoint has it; one row is read for each token.
struct Table {
  Bytes bytes;
  Values values = Values::f32;
  size_t rows = 0, columns = 0;
  std::vector<float> scale;  // i8 only: of each row
  void read(size_t row, float* out) const;
};

struct Model {
  Config config;
  Table embedding;
  std::vector<Layer> layers;
  std::vector<float> final_norm;
  std::shared_ptr<const Matrix> head;  // [vocabulary or fewer, hidden]
  size_t bytes() const;                // that one token of plain decoding reads
};

class Engine {
 public:
  // Engines that share a pool take turns.
  Engine(std::shared_ptr<const Model> model, std::shared_ptr<Pool> pool, const Kernels& kernels);

  // Appends `count` tokens to the sequence; the logits [wanted, head rows padded] after the last `wanted` of them.
  // `parents` (or null): the tokens are the last `count` of a tree of `nodes` behind the sequence, whose parent each is (-1: the
  // sequence's end). Throws std::invalid_argument for ids outside of the vocabulary or more tokens than the context holds.
  const float* forward(const int64_t* ids, int count, int wanted, const int32_t* parents = nullptr, int nodes = 0);
  // Keeps only the first `length` tokens.
  void rollback(size_t length);
  // After a tree behind `length` tokens: keep those and these of its nodes, in this order.
  void keep(size_t length, const std::vector<int32_t>& nodes);
  // Greedily drafts `count` tokens after `id`, whose number the head's row numbers are (or `map` of them).
  std::vector<int64_t> draft(int64_t id, int count, const std::vector<int64_t>& map);

  size_t length() const { return length_; }
  size_t logits_stride() const { return padded(model_->head->rows, kRows); }
  const Model& model() const { return *model_; }

 private:
  struct Cache {
    std::vector<float> keys, values;  // [kv_heads, capacity, head_dim]
  };
  void grow(size_t tokens);
  void attention(const Layer& layer, Cache& cache, int count, const std::vector<std::vector<int32_t>>& seen);
  void rotate(float* head, size_t at);
  void prepare_rope(int count, const int32_t* depths);

  std::shared_ptr<const Model> model_;
  const Kernels& kernels_;
  std::shared_ptr<Pool> shared_;
  Pool& pool_;
  std::vector<Cache> caches_;
  size_t length_ = 0, capacity_ = 0;
  Buffer normed_, attended_, gate_;
  std::vector<float> hidden_, q_, k_, v_, up_, projected_, logits_, cos_, sin_;
  std::vector<size_t> positions_;
};

}  // namespace sparsedraft
