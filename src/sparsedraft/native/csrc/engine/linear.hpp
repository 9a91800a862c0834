// Matrices times activations, shared out over a pool of threads.
#pragma once

#include <algorithm>
#include <vector>

#include "engine/pool.hpp"
#include "kernels/kernels.hpp"
#include "layout/records_int4.hpp"

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
  // out [stride()] = what integers of 8 bits lose of token t, once `activations` has made them.
  void rounding_errors(int t, float* out) const {
    const size_t blocks = width_ / kScaleBlock, begin = t - t % together_, inside = t - begin;
    const size_t count = std::min<size_t>(together_, tokens_ - begin);
    float scale = last8_[t];
    for (size_t c = width_; c > 0; c -= kInputGroup) {
      const size_t from = c - kInputGroup;
      for (size_t i = from; i < c; ++i)
        out[i] = x_[t * width_ + i] - scale * q8_[begin * width_ + (i / kUnit8 * count + inside) * kUnit8 + i % kUnit8];
      scale *= ratio8_[begin * blocks + from / kScaleBlock * count + inside];  // that of the group before
    }
  }
  size_t stride() const { return width_; }
  int tokens() const { return tokens_; }

  // What matrices read beside floats.
  struct Wanted {
    bool words = false;  // integers of 16 bits
    bool split = false;  // those once more, as Kernels::split lays them out
    bool bytes = false;  // integers of 8 bits
  };
  Activations activations(const Kernels& kernels, Pool& pool, Wanted wanted) {
    if (wanted.words) quantize(kernels, pool);
    if (wanted.split) split_bytes(kernels, pool);
    if (wanted.bytes) quantize8(kernels, pool);
    return {x_.data(), q_.data(),  scale_.data(),  width_,         blocks_, tokens_, wanted.split ? bytes_.data() : nullptr,
            q8_.data(), start8_.data(), half8_.data(), ratio8_.data(), last8_.data(), together_};
  }

 private:
  void quantize8(const Kernels& kernels, Pool& pool) {
    const size_t size = width_ * tokens_;
    const size_t blocks = width_ / kScaleBlock;
    if (q8_.size() < size + kSlack) q8_.resize(size + kSlack);
    if (start8_.size() < blocks * tokens_) start8_.resize(blocks * tokens_);
    if (half8_.size() < blocks * tokens_) half8_.resize(blocks * tokens_);
    if (ratio8_.size() < blocks * tokens_) ratio8_.resize(blocks * tokens_);
    if (last8_.size() < static_cast<size_t>(tokens_)) last8_.resize(tokens_);
    if (!tokens_) return;
    const int groups = (tokens_ + kernels.most_together - 1) / kernels.most_together;
    together_ = (tokens_ + groups - 1) / groups;
    pool.run(tokens_, kTokensOfPiece, [&](size_t first, size_t last) {
      for (size_t t = first; t < last; ++t) {
        const size_t begin = t - t % together_;  // of the group
        const size_t inside = t - begin;
        const size_t count = std::min<size_t>(together_, tokens_ - begin);
        kernels.quantize8(row(static_cast<int>(t)), width_, count, q8_.data() + begin * width_ + inside * kUnit8,
                          start8_.data() + begin * blocks + inside,
                          half8_.data() + begin * blocks + inside, ratio8_.data() + begin * blocks + inside, last8_.data() + t);
      }
    });
  }
  void quantize(const Kernels& kernels, Pool& pool) {
    pool.run(tokens_, kTokensOfPiece, [&](size_t first, size_t last) {
      for (size_t t = first; t < last; ++t)
        kernels.quantize(row(static_cast<int>(t)), width_, q_.data() + t * width_, scale_.data() + t * blocks_);
    });
  }
  void split_bytes(const Kernels& kernels, Pool& pool) {
    const size_t group = 2 * kGroup * width_;  // bytes
    const size_t groups = (tokens_ + kGroup - 1) / kGroup;
    if (bytes_.size() < groups * group) bytes_.resize(groups * group);
    pool.run(groups, 1, [&](size_t first, size_t last) {
      for (size_t g = first; g < last; ++g) {
        const int left = tokens_ - static_cast<int>(g) * kGroup;
        kernels.split(q_.data() + g * kGroup * width_, width_, std::min(kGroup, left), bytes_.data() + g * group);
      }
    });
  }

  static constexpr size_t kTokensOfPiece = 8;

  std::vector<float> x_, scale_, ratio8_, last8_;
  std::vector<int16_t> q_;
  std::vector<int8_t> q8_;
  std::vector<int32_t> start8_, half8_;
  LineBytes bytes_;
  size_t width_ = 0;   // inputs of a token, padded
  size_t blocks_ = 0;  // scales of a token
  int tokens_ = 0;
  int together_ = 1;  // tokens of a group of q8_
};

// Tiles of a matrix, from the first to the one behind the last.
struct TileRange {
  size_t first = 0;
  size_t last = 0;
  size_t count() const { return last - first; }
};

// out = W x, of the rows in `tiles` only
struct Product {
  const Matrix* matrix;
  float* out;     // [tokens, stride]
  size_t stride;  // room for whole tiles of rows
  TileRange tiles;
  Product(const Matrix* m, float* y, size_t apart) : Product(m, y, apart, {0, m->tile_count()}) {}
  Product(const Matrix* m, float* y, size_t apart, TileRange of) : matrix(m), out(y), stride(apart), tiles(of) {}
};

// Several products of the same inputs, in one go of the pool.
inline void multiply_rounded(const Kernels& kernels, Pool& pool, ActivationBuffer& x, const std::vector<Product>& products) {
  ActivationBuffer::Wanted wanted;
  size_t tiles = 0;
  for (const Product& p : products) {
    wanted.words |= p.matrix->values == Values::i8 && !p.matrix->wants_bytes();
    wanted.bytes |= p.matrix->wants_bytes();
    wanted.split |= kernels.wants_split && kernels.wants_split(*p.matrix, x.tokens());
    tiles += p.tiles.count();
  }
  const Activations a = x.activations(kernels, pool, wanted);
  constexpr size_t kPiecesOfThread = 8;
  size_t step = std::max<size_t>(1, tiles / (static_cast<size_t>(pool.threads()) * kPiecesOfThread));
  step += step % 2;  // some kernels take two tiles at once
  pool.run(tiles, step, [&](size_t first, size_t last) {  // of the tiles of all matrices, one behind the other
    for (const Product& p : products) {
      const size_t count = p.tiles.count(), begin = p.tiles.first;
      if (first < count) kernels.multiply(*p.matrix, a, p.out, p.stride, begin + first, begin + std::min(last, count));
      if (last <= count) break;
      first = first > count ? first - count : 0;
      last -= count;
    }
  });
}

// The same, where `fine` is not null with inputs of 16 bits also for weights whose kernels take 8: W x = W (q scale) + W r, of which
// r = x - q scale has 8 bits and scales of its own. Each token is two of a pass that reads the weights once.
struct FineInputs {
  ActivationBuffer both;    // x, then r
  std::vector<float> sums;  // of both: [2 tokens, stride]
};
inline void multiply_all(const Kernels& kernels, Pool& pool, ActivationBuffer& x, const std::vector<Product>& products,
                         FineInputs* fine = nullptr) {
  std::vector<Product> of_bytes, others;
  for (const Product& p : products) (fine && p.matrix->wants_bytes() ? of_bytes : others).push_back(p);
  if (!others.empty()) multiply_rounded(kernels, pool, x, others);
  if (of_bytes.empty()) return;
  const int count = x.tokens();
  x.activations(kernels, pool, {.bytes = true});
  fine->both.resize(x.stride(), 2 * count);
  pool.run(count, 1, [&](size_t first, size_t last) {
    for (int t = static_cast<int>(first); t < static_cast<int>(last); ++t) {
      std::copy_n(x.row(t), x.stride(), fine->both.row(t));
      x.rounding_errors(t, fine->both.row(count + t));
    }
  });
  for (const Product& p : of_bytes) {
    if (fine->sums.size() < 2 * count * p.stride) fine->sums.resize(2 * count * p.stride);
    const float* sums = fine->sums.data();
    multiply_rounded(kernels, pool, fine->both, {{p.matrix, fine->sums.data(), p.stride, p.tiles}});
    const size_t begin = p.tiles.first * p.matrix->tile_rows(), end = std::min(p.tiles.last * p.matrix->tile_rows(), p.matrix->rows);
    pool.run(count, 1, [&](size_t first, size_t last) {
      for (size_t t = first; t < last; ++t)
        for (size_t i = begin; i < end; ++i) p.out[t * p.stride + i] = sums[t * p.stride + i] + sums[(count + t) * p.stride + i];
    });
  }
}

}  // namespace sparsedraft
