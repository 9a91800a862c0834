#include "engine/sequence.hpp"

#include <algorithm>

namespace sparsedraft {

Sequence::Sequence(const Model& model)
    : config_(&model.config), shape_(model.config.head_dim, model.config.cache_bits), caches_(model.layers.size()) {}

void Sequence::rollback(size_t length) { length_ = std::min(length, length_); }

void Sequence::reserve(size_t tokens) {
  constexpr size_t kStep = 2;    // blocks
  constexpr size_t kSpare = 16;  // it grows by a sixteenth: copying stays small beside the passes, and little stays empty
  const Config& c = *config_;
  const size_t needed = padded(tokens, kKeyBlock) / kKeyBlock;
  const size_t most = padded(c.max_length, kKeyBlock) / kKeyBlock;
  for (Cache& cache : caches_) {  // each is replaced as a whole: memory may run out at any of them
    if (needed <= cache.capacity) continue;
    Cache larger;
    larger.capacity = std::max(padded(needed, kStep), cache.capacity + cache.capacity / kSpare);
    if (most) larger.capacity = std::max(needed, std::min(larger.capacity, most));
    larger.bytes.resize(c.kv_heads * larger.capacity * shape_.bytes());
    for (size_t h = 0; h < c.kv_heads; ++h)
      std::copy_n(cache.blocks(h, shape_), cache.capacity * shape_.bytes(), larger.blocks(h, shape_));
    cache = std::move(larger);
  }
}

void Sequence::keep(size_t length, const std::vector<int32_t>& nodes) {
  if (length > length_ && !nodes.empty()) throw std::invalid_argument("kept nodes must come behind cached tokens");
  for (size_t i = 0; i < nodes.size(); ++i)
    if (nodes[i] < static_cast<int32_t>(i) || length + nodes[i] >= length_)
      throw std::invalid_argument("kept nodes must be cached, and in the order of the tree");
  for (Cache& cache : caches_)
    for (size_t h = 0; h < config_->kv_heads; ++h) {
      uint8_t* blocks = cache.blocks(h, shape_);
      for (size_t i = 0; i < nodes.size(); ++i) copy_token(shape_, blocks, length + nodes[i], blocks, length + i);
    }
  rollback(length + nodes.size());
}

}  // namespace sparsedraft
