// Rotary embeddings of the tokens of a pass.
#pragma once

#include <vector>

#include "engine/tokens.hpp"

namespace sparsedraft {

class RotaryTable {
 public:
  // cos and sin of the angles position * inv_freq[i], times rope_scaling, for each kind of rotary embedding and each token.
  void compute(const Config& config, const std::vector<Token>& tokens);
  // (x[i], x[i + half]) turned by the angle of i: x[i] cos - x[i + half] sin, x[i + half] cos + x[i] sin
  void rotate(float* head, int kind, size_t token) const;

 private:
  std::vector<float> cos_, sin_;  // [kinds, tokens, half]
  size_t half_ = 0;               // of head_dim
  size_t tokens_ = 0;
};

}  // namespace sparsedraft
