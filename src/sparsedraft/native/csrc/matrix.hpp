// A weight matrix as the kernels read it, and the activations they multiply it with.
//
// Rows are cut into tiles of 8: row r of a tile lives in SIMD lane r. Columns are padded to a multiple of 64 with zeros.
// A tile is one sequential stream of bytes, so that a kernel reads memory from front to back and nothing else.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

namespace sparsedraft {

enum class Values : uint8_t { f32, f16, bf16, i8 };
enum class Layout : uint8_t { dense, two_four, n_eight, bitmask, window };

constexpr int kRows = 8;          // rows of a tile: the 32-bit lanes of 256 bits
constexpr int kColumns = 64;      // columns are padded to a multiple of this
constexpr int kBlock = 512;       // inputs that share an activation scale: 127 * 32767 * 512 still fits in 31 bits
constexpr int kGroup = 16;        // tokens that Kernels::split takes together
constexpr int kSlack = 64;        // bytes that kernels may read past a stream's end
constexpr size_t kMostRows = size_t{1} << 28, kMostColumns = size_t{1} << 24;
constexpr size_t kWindowColumns = 65536;  // padded: where a window lies is written in 16 bits

inline size_t padded(size_t n, size_t step) { return (n + step - 1) / step * step; }
inline size_t size_of(Values v) { return v == Values::f32 ? 4 : v == Values::i8 ? 1 : 2; }

// Bytes aligned to a cache line, owned or borrowed from a mapped file. Owned ones lie in pages of 2 MB where Linux has them:
// a walk through all weights in pages of 4 KB waits for the pages' table again and again.
class Bytes {
 public:
  Bytes() = default;
  explicit Bytes(size_t size) : size_(size) {
    if (!size) return;
#ifdef MADV_HUGEPAGE
    const size_t page = size_t{1} << 21, alignment = size >= page ? page : 64;
#else
    const size_t alignment = 64;
#endif
    void* found = std::aligned_alloc(alignment, padded(size, alignment));
    if (!found) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (alignment == page) madvise(found, padded(size, page), MADV_HUGEPAGE);  // a wish: where it is refused, all works as well
#endif
    owned_.reset(static_cast<uint8_t*>(found));
    data_ = owned_.get();
  }
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  const uint8_t* data() const { return data_; }
  uint8_t* writable() { return owned_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t, Free> owned_;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

struct Matrix {
  size_t rows = 0, columns = 0;  // as the checkpoint has them
  Layout layout = Layout::dense;
  Values values = Values::f32;
  int n = 0;                       // of N:8
  Bytes stream;                    // the tiles, one behind the other
  std::vector<size_t> tiles;       // where each begins in `stream`, and the end of the last
  std::vector<int32_t> order;      // window only: the row that each lane of each tile holds (rows: none)
  std::vector<float> scale;        // i8 only: of each row, padded to whole tiles in the order of the lanes

  size_t tile_count() const { return tiles.empty() ? 0 : tiles.size() - 1; }
  size_t width() const { return padded(columns, kColumns); }
  size_t bytes() const { return stream.size() + scale.size() * 4; }
};

// Activations of `tokens` rows, each padded to the matrix's width with zeros: float, and as 16-bit integers with a scale for
// every kBlock of them for matrices of int8. (15 bits lose about 1e-5 of a block's largest; 8 bits would cost acceptance.)
struct Activations {
  const float* x = nullptr;
  const int16_t* q = nullptr;
  const float* scale = nullptr;
  size_t width = 0, blocks = 0;
  int tokens = 0;
  const uint8_t* bytes = nullptr;  // q once more as Kernels::split lays it out, where that is wanted
};

}  // namespace sparsedraft
