// Memory aligned to a cache line: of a matrix, owned or borrowed from a mapped file; of keys and values.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace sparsedraft {

constexpr size_t kCacheLine = 64;

inline size_t padded(size_t n, size_t step) { return (n + step - 1) / step * step; }

// Bytes that begin on a cache line and are zero at first. Many go back to the system as soon as they are free: among the buffers of
// all layers' caches, each replaced by a larger one in turn, a heap keeps holes of a third of what is in use.
template <class T>
struct LineAllocator {
  using value_type = T;
  static constexpr size_t kMany = size_t{1} << 18;  // bytes
  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t n) {
#ifdef __linux__
    if (n * sizeof(T) >= kMany) {
      void* p = mmap(nullptr, n * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (p == MAP_FAILED) throw std::bad_alloc();
      return static_cast<T*>(p);
    }
#endif
    return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t{kCacheLine}));
  }
  void deallocate(T* p, [[maybe_unused]] size_t n) {
#ifdef __linux__
    if (n * sizeof(T) >= kMany) {
      munmap(p, n * sizeof(T));
      return;
    }
#endif
    ::operator delete(p, std::align_val_t{kCacheLine});
  }
  bool operator==(const LineAllocator&) const { return true; }
};
using LineBytes = std::vector<uint8_t, LineAllocator<uint8_t>>;

// Owned bytes lie in pages of 2 MB where Linux has them: in pages of 4 KB, reading all weights waits for the page table again
// and again.
class Bytes {
 public:
  Bytes() = default;
  // Owned, not initialised. Throws std::bad_alloc.
  explicit Bytes(size_t size) : size_(size) {
    if (!size) return;
#ifdef MADV_HUGEPAGE
    constexpr size_t kHugePage = size_t{1} << 21;
    const size_t alignment = size >= kHugePage ? kHugePage : kCacheLine;
#else
    const size_t alignment = kCacheLine;
#endif
    void* memory = std::aligned_alloc(alignment, padded(size, alignment));
    if (!memory) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    // Advice only: where the kernel refuses it, small pages work, too.
    if (alignment == kHugePage) madvise(memory, padded(size, kHugePage), MADV_HUGEPAGE);
#endif
    owned_.reset(static_cast<uint8_t*>(memory));
    data_ = owned_.get();
  }
  // Borrowed: whoever makes this keeps `data` alive.
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  const uint8_t* data() const { return data_; }
  uint8_t* writable() { return owned_.get(); }  // owned bytes only
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t, Free> owned_;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace sparsedraft
