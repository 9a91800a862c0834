// One sequence of tokens: the keys and values of each layer.
#pragma once

#include "engine/model.hpp"

namespace sparsedraft {

class Sequence {
 public:
  struct Cache {
    std::vector<float> keys, values;  // [kv_heads, capacity, head_dim]
    size_t capacity = 0;              // tokens
    // Where the key (value) of a head's token lies.
    size_t offset(size_t head, size_t token, size_t head_dim) const { return (head * capacity + token) * head_dim; }
  };

  explicit Sequence(const Model& model);
  size_t length() const { return length_; }
  Cache& cache(size_t layer) { return caches_[layer]; }

  // Make room for `tokens` in all. Throws std::bad_alloc; the tokens that were there stay readable.
  void reserve(size_t tokens);
  // Count `tokens` more, whose keys and values lie behind the others.
  void append(size_t tokens) { length_ += tokens; }
  // Keep only the first `length` tokens.
  void rollback(size_t length);
  // After a tree behind `length` tokens: keep those and these of its nodes, in this order.
  void keep(size_t length, const std::vector<int32_t>& nodes);

 private:
  const Config* config_;
  std::vector<Cache> caches_;  // of each layer
  size_t length_ = 0;
};

}  // namespace sparsedraft
