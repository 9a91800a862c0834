// A decoder-only language model: weights that are read only, and sequences with caches that roll back.
#pragma once

#include <memory>

#include "linear.hpp"

namespace sparsedraft {

struct Layer {
  std::shared_ptr<const Matrix> q, k, v, o, gate, up, down;
  std::vector<float> q_bias, k_bias, v_bias, o_bias;  // empty: none
  std::vector<float> input_norm, attention_norm;      // before attention, before the MLP
  std::vector<float> after_attention, after_mlp;      // Gemma's, else empty
  std::vector<float> q_norm, k_norm;                  // of each head, else empty
  int window = 0;                                     // tokens that attention sees; 0: all
  int rope = 0;                                       // which of Config::inv_freq
};

struct Config {
  size_t hidden = 0, vocabulary = 0, heads = 0, kv_heads = 0, head_dim = 0, intermediate = 0;
  size_t max_length = 0;  // 0: no limit
  float eps = 1e-6f, attention_scale = 0, embedding_scale = 1, softcap = 0;
  bool gelu = false, norm_one_more = false;  // Gemma
  std::vector<std::vector<float>> inv_freq;  // of each kind of rotary embedding: [head_dim / 2]
  std::vector<float> rope_scaling;           // what each multiplies cos and sin with
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

// The keys and values of one sequence.
class Sequence {
 public:
  explicit Sequence(const Model& model);
  size_t length() const { return length_; }
  void rollback(size_t length) { length_ = std::min(length, length_); }
  // After a tree behind `length` tokens: keep those and these of its nodes, in this order.
  void keep(size_t length, const std::vector<int32_t>& nodes);

 private:
  friend class Engine;
  struct Cache {
    std::vector<float> keys, values;  // [kv_heads, capacity, head_dim]
    size_t capacity = 0;
  };
  void grow(size_t tokens);
  const Config* config_;
  std::vector<Cache> caches_;  // of each layer
  size_t length_ = 0;
};

// Tokens to append to a sequence, and how many logits are wanted after the last of them. With `parents`, they are the last of a
// tree behind the sequence (all its nodes so far), whose parent each is; -1: the sequence's end.
struct Chunk {
  Sequence* sequence = nullptr;
  std::vector<int64_t> ids;
  int wanted = 0;
  bool tree = false;
  std::vector<int32_t> parents;
};

// Runs sequences of one model, several in one pass if asked; a token's logits have the same bits whatever is beside it.
class Engine {
 public:
  // Engines that share a pool take turns.
  Engine(std::shared_ptr<const Model> model, std::shared_ptr<Pool> pool, const Kernels& kernels);

  // The logits [sum of wanted, logits_stride()] in the order of the chunks; null where none are wanted. Throws
  // std::invalid_argument for ids outside of the vocabulary or more tokens than the context holds, std::bad_alloc where
  // memory does not suffice; no sequence has changed then.
  const float* forward(std::vector<Chunk>& chunks);
  // Reads `ids` and drafts `count` tokens greedily; row r of the head stands for map[r] (no map: for r). A last token of
  // -1: logits that hold NaN or infinity.
  std::vector<int64_t> draft(Sequence& sequence, std::vector<int64_t> ids, int count, const int64_t* map);

  size_t logits_stride() const { return padded(model_->head->rows, kRows); }
  const Model& model() const { return *model_; }

 private:
  struct Token {  // one of a pass
    int64_t id;
    Sequence* sequence;
    size_t position, slot;      // where rotary embedding puts it; where its key lies
    std::vector<int32_t> seen;  // trees only: the slots it sees, in order
  };
  void lay_out(const std::vector<Chunk>& chunks);
  void prepare_rope();
  void rotate(float* head, size_t at) const;
  void attention(const Layer& layer, size_t index);

  std::shared_ptr<const Model> model_;
  std::shared_ptr<Pool> shared_;
  Pool& pool_;
  const Kernels& kernels_;
  std::vector<Token> tokens_;
  Buffer normed_, attended_, gate_;
  std::vector<float> hidden_, q_, k_, v_, up_, projected_, logits_, cos_, sin_;
};

}  // namespace sparsedraft
