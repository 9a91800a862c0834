#include "engine/sequence.hpp"

#include <algorithm>
#include <cstring>

namespace sparsedraft {

Sequence::Sequence(const Model& model) : config_(&model.config), caches_(model.layers.size()) {}

void Sequence::rollback(size_t length) { length_ = std::min(length, length_); }

void Sequence::reserve(size_t tokens) {
  constexpr size_t kStep = 64;  // tokens
  const Config& c = *config_;
  for (Cache& cache : caches_) {  // each is replaced as a whole: memory may run out at any of them
    if (tokens <= cache.capacity) continue;
    size_t capacity = std::max(padded(tokens, kStep), cache.capacity + cache.capacity / 2);
    if (c.max_length) capacity = std::max(tokens, std::min(capacity, c.max_length));
    Cache larger;
    larger.capacity = capacity;
    larger.keys.resize(c.kv_heads * capacity * c.head_dim);
    larger.values.resize(larger.keys.size());
    for (size_t h = 0; h < c.kv_heads; ++h) {
      const size_t from = cache.offset(h, 0, c.head_dim);
      const size_t to = larger.offset(h, 0, c.head_dim);
      std::copy_n(cache.keys.data() + from, length_ * c.head_dim, larger.keys.data() + to);
      std::copy_n(cache.values.data() + from, length_ * c.head_dim, larger.values.data() + to);
    }
    cache = std::move(larger);
  }
}

void Sequence::keep(size_t length, const std::vector<int32_t>& nodes) {
  const size_t dim = config_->head_dim;
  if (length > length_ && !nodes.empty()) throw std::invalid_argument("kept nodes must come behind cached tokens");
  for (size_t i = 0; i < nodes.size(); ++i)
    if (nodes[i] < static_cast<int32_t>(i) || length + nodes[i] >= length_)
      throw std::invalid_argument("kept nodes must be cached, and in the order of the tree");
  for (Cache& cache : caches_)
    for (std::vector<float>* all : {&cache.keys, &cache.values})
      for (size_t h = 0; h < config_->kv_heads; ++h) {
        float* tree = all->data() + cache.offset(h, length, dim);
        for (size_t i = 0; i < nodes.size(); ++i) std::memmove(tree + i * dim, tree + nodes[i] * dim, dim * sizeof(float));
      }
  rollback(length + nodes.size());
}

}  // namespace sparsedraft
