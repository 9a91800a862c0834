// One sequence of tokens: the keys and values of each layer.
#pragma once

#include "engine/model.hpp"
#include "layout/key_blocks.hpp"

namespace sparsedraft {

class Sequence {
 public:
  explicit Sequence(const Model& model);
  size_t length() const { return length_; }
  const KeyBlockShape& shape() const { return shape_; }
  // The blocks of a head of keys.
  uint8_t* blocks(size_t layer, size_t head) { return caches_[layer].blocks(head, shape_); }

  // Make room for `tokens` in all. Throws std::bad_alloc; the tokens that were there stay readable.
  void reserve(size_t tokens);
  // Count `tokens` more, whose keys and values lie behind the others.
  void append(size_t tokens) { length_ += tokens; }
  // Keep only the first `length` tokens.
  void rollback(size_t length);
  // After a tree behind `length` tokens: keep those and these of its nodes, in this order.
  void keep(size_t length, const std::vector<int32_t>& nodes);

 private:
  struct Cache {
    LineBytes bytes;      // [kv_heads, capacity] blocks of keys and values
    size_t capacity = 0;  // blocks
    uint8_t* blocks(size_t head, const KeyBlockShape& shape) { return bytes.data() + head * capacity * shape.bytes(); }
  };

  const Config* config_;
  KeyBlockShape shape_;
  std::vector<Cache> caches_;  // of each layer
  size_t length_ = 0;
};

}  // namespace sparsedraft
