// A decoder-only language model: weights that are only read, shared by all sequences.
#pragma once

#include <memory>
#include <vector>

#include "layout/matrix.hpp"

namespace sparsedraft {

struct Config {
  size_t hidden = 0;  // sizes
  size_t vocabulary = 0;
  size_t heads = 0;
  size_t kv_heads = 0;
  size_t head_dim = 0;
  size_t intermediate = 0;
  size_t max_length = 0;  // tokens of a sequence; 0: no limit
  float eps = 1e-6f;      // of RMS norms
  float attention_scale = 0;
  float embedding_scale = 1;
  int cache_bits = 16;         // of keys and values: 16 or 8
  bool fine_inputs = false;    // inputs of 16 bits for all weights of integers (linear.hpp)
  float softcap = 0;           // of logits: softcap * tanh(x / softcap); 0: none
  bool gelu = false;           // the activation: GELU by tanh instead of SiLU
  bool norm_one_more = false;  // norms multiply with 1 + weight: Gemma
  std::vector<std::vector<float>> inv_freq;  // of each kind of rotary embedding: [head_dim / 2]
  std::vector<float> rope_scaling;           // of each kind: cos and sin are multiplied with it
};

struct Layer {
  std::shared_ptr<const Matrix> q, k, v, o, gate, up, down;
  std::vector<float> q_bias, k_bias, v_bias, o_bias;  // empty: none
  std::vector<float> input_norm, attention_norm;      // before attention, before the MLP
  std::vector<float> after_attention, after_mlp;      // norms of what a block gives: Gemma; empty: none
  std::vector<float> q_norm, k_norm;                  // of each head; empty: none
  std::vector<float> key_factors;                     // [key heads, head_dim] (key_factors.hpp); empty but with caches of 8 bits
  int window = 0;                                     // tokens that attention sees; 0: all
  int rope = 0;                                       // the kind of rotary embedding: index of Config::inv_freq
};

// The embedding as the checkpoint has it, row by row; one row is read for each token.
struct EmbeddingTable {
  Bytes bytes;
  Values values = Values::f32;
  size_t rows = 0;
  size_t columns = 0;
  std::vector<float> scale;       // i8 only: of each row
  std::vector<uint16_t> halves;   // i4 only: float16, of each group of inputs of each row
  size_t group = 0;               // i4 only: inputs of a group
  // Bytes of a row: codes of int4 lie two a byte, the first in its low half; GGUF's types are blocks.
  size_t row_bytes() const;
  // Row `row` as floats: out [columns].
  void read(size_t row, float* out) const;
};

struct Model {
  Config config;
  EmbeddingTable embedding;
  std::vector<Layer> layers;
  std::vector<float> final_norm;
  std::shared_ptr<const Matrix> head;  // [vocabulary or fewer, hidden]
  size_t bytes() const;                // that one token of plain decoding reads
};

}  // namespace sparsedraft
