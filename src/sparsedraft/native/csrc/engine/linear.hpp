// Matrices times activations, shared out over a pool of threads.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "engine/pool.hpp"
#include "kernels/kernels.hpp"

namespace sparsedraft {

// The inputs of products, one row a token; grows, never shrinks.
class ActivationBuffer {
 public:
  // Room for tokens x width (padded). The padding is zero, the rest what was there.
  void resize(size_t width, int tokens) {
    width_ = padded(width, kColumns);
    tokens_ = tokens;
    blocks_ = (width_ + kBlock - 1) / kBlock;
    const size_t size = width_ * tokens;
    // each by its own size: an earlier call may have run out of memory between them
    if (x_.size() < size) x_.resize(size);
    if (q_.size() < size + kSlack) q_.resize(size + kSlack);
    if (scale_.size() < blocks_ * tokens) scale_.resize(blocks_ * tokens);
    for (int t = 0; t < tokens; ++t) std::fill(row(t) + width, row(t) + width_, 0.0f);
  }
  float* row(int t) { return x_.data() + t * width_; }
  size_t stride() const { return width_; }
  int tokens() const { return tokens_; }

  // What kernels read. `integers`: quantised, too; `split`: the integers once more, as Kernels::split lays them out.
  Activations activations(const Kernels& kernels, Pool& pool, bool integers, bool split) {
    if (integers) quantize(kernels, pool);
    if (split) split_bytes(kernels, pool);
    return {x_.data(), q_.data(), scale_.data(), width_, blocks_, tokens_, split ? bytes_.data() : nullptr};
  }

 private:
  void quantize(const Kernels& kernels, Pool& pool) {
    constexpr size_t kTokensOfPiece = 8;
    pool.run(tokens_, kTokensOfPiece, [&](size_t first, size_t last) {
      for (size_t t = first; t < last; ++t)
        kernels.quantize(row(static_cast<int>(t)), width_, q_.data() + t * width_, scale_.data() + t * blocks_);
    });
  }
  void split_bytes(const Kernels& kernels, Pool& pool) {
    const size_t group = 2 * kGroup * width_;  // bytes
    const size_t groups = (tokens_ + kGroup - 1) / kGroup;
    if (bytes_.size() < groups * group) bytes_ = Bytes(groups * group);
    pool.run(groups, 1, [&](size_t first, size_t last) {
      for (size_t g = first; g < last; ++g) {
        const int left = tokens_ - static_cast<int>(g) * kGroup;
        kernels.split(q_.data() + g * kGroup * width_, width_, std::min(kGroup, left), bytes_.writable() + g * group);
      }
    });
  }

  std::vector<float> x_, scale_;
  std::vector<int16_t> q_;
  Bytes bytes_;
  size_t width_ = 0;   // inputs of a token, padded
  size_t blocks_ = 0;  // scales of a token
  int tokens_ = 0;
};

// out = W x
struct Product {
  const Matrix* matrix;
  float* out;     // [tokens, stride]
  size_t stride;  // room for whole tiles of rows
};

// Several products of the same inputs, in one go of the pool.
inline void multiply_all(const Kernels& kernels, Pool& pool, ActivationBuffer& x, std::initializer_list<Product> products) {
  bool integers = false;
  bool split = false;
  size_t tiles = 0;
  for (const Product& p : products) {
    integers |= p.matrix->values == Values::i8;
    split |= kernels.wants_split && kernels.wants_split(*p.matrix, x.tokens());
    tiles += p.matrix->tile_count();
  }
  const Activations a = x.activations(kernels, pool, integers, split);
  constexpr size_t kPiecesOfThread = 8;
  size_t step = std::max<size_t>(1, tiles / (static_cast<size_t>(pool.threads()) * kPiecesOfThread));
  step += step % 2;  // some kernels take two tiles at once
  pool.run(tiles, step, [&](size_t first, size_t last) {  // of the tiles of all matrices, one behind the other
    for (const Product& p : products) {
      const size_t count = p.matrix->tile_count();
      if (first < count) kernels.multiply(*p.matrix, a, p.out, p.stride, first, std::min(last, count));
      if (last <= count) break;
      first = first > count ? first - count : 0;
      last -= count;
    }
  });
}

}  // namespace sparsedraft
