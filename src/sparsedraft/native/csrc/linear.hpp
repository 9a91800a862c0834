// Matrices times activations over a pool of threads.
#pragma once

#include <initializer_list>

#include "kernels.hpp"
#include "pool.hpp"

namespace sparsedraft {

// Activations with what int8 matrices need beside the floats; grows, never shrinks.
class Buffer {
 public:
  // Room for tokens x width (padded); the padding is zero.
  float* resize(size_t width, int tokens) {
    width_ = padded(width, kColumns), tokens_ = tokens;
    const size_t size = width_ * tokens;
    if (x_.size() < size) x_.resize(size);
    if (q_.size() < size + kSlack) q_.resize(size + kSlack);  // asked by itself: an earlier call may have run out of memory
    blocks_ = (width_ + kBlock - 1) / kBlock;
    if (scale_.size() < blocks_ * tokens) scale_.resize(blocks_ * tokens);
    if (width_ != width)
      for (int t = 0; t < tokens; ++t) std::fill(row(t) + width, row(t) + width_, 0.0f);
    return x_.data();
  }
  float* row(int t) { return x_.data() + t * width_; }
  const float* row(int t) const { return x_.data() + t * width_; }
  size_t stride() const { return width_; }
  int tokens() const { return tokens_; }

  // What a matrix reads; `integers`: quantise first; `split`: these once more, in bytes.
  Activations ready(const Kernels& k, Pool& pool, bool integers, bool split) {
    if (integers)
      pool.run(tokens_, 8, [&](size_t first, size_t last) {
        for (size_t t = first; t < last; ++t) k.quantize(row(t), width_, q_.data() + t * width_, scale_.data() + t * blocks_);
      });
    const size_t size = split ? padded(tokens_, kGroup) * width_ * 2 : 0;
    if (bytes_.size() < size) bytes_ = Bytes(size);
    if (size)
      pool.run((tokens_ + kGroup - 1) / kGroup, 1, [&](size_t first, size_t last) {
        for (size_t g = first; g < last; ++g)
          k.split(q_.data() + g * kGroup * width_, width_, std::min(kGroup, tokens_ - static_cast<int>(g) * kGroup),
                  bytes_.writable() + g * kGroup * width_ * 2);
      });
    return {x_.data(), q_.data(), scale_.data(), width_, blocks_, tokens_, size ? bytes_.data() : nullptr};
  }

 private:
  std::vector<float> x_, scale_;
  std::vector<int16_t> q_;
  Bytes bytes_;
  size_t width_ = 0, blocks_ = 0;
  int tokens_ = 0;
};

struct Product {
  const Matrix* matrix;
  float* out;      // [tokens, stride]
  size_t stride;   // room for whole tiles of rows
};

// All of these products of the same activations, in one go of the pool.
inline void multiply_all(const Kernels& k, Pool& pool, Buffer& x, std::initializer_list<Product> products) {
  bool integers = false, split = false;
  size_t tiles = 0;
  for (const Product& p : products) {
    integers |= p.matrix->values == Values::i8, tiles += p.matrix->tile_count();
    split |= k.wants_split && k.wants_split(*p.matrix, x.tokens());
  }
  const Activations a = x.ready(k, pool, integers, split);
  size_t step = std::max<size_t>(1, tiles / (static_cast<size_t>(pool.threads()) * 8));
  step += step % 2;  // some kernels take two tiles at once
  pool.run(tiles, step, [&](size_t first, size_t last) {
    for (const Product& p : products) {
      const size_t count = p.matrix->tile_count();
      if (first < count) k.multiply(*p.matrix, a, p.out, p.stride, first, std::min(last, count));
      if (last <= count) break;
      first = first > count ? first - count : 0, last -= count;
    }
  });
}

}  // namespace sparsedraft
