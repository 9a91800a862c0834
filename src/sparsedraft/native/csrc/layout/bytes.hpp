// Memory aligned to a cache line: of a matrix, owned or borrowed from a mapped file; of keys and values.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
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

// Memory in pages of 2 MB where Linux has them: in pages of 4 KB, reading all weights waits for the page table again and again. Many
// matrices share a stretch, as the small ones would get no such page of their own, and a large one's last page would be half empty.
class HugePages {
 public:
  // Not initialised, from the beginning of a cache line on. The stretch is freed with the last that is left in it. Any thread may
  // call this. Throws std::bad_alloc.
  static std::shared_ptr<uint8_t> take(size_t size) {
    size = padded(size, kCacheLine);
    if (size > kStretch / 2) return stretch(size);
    static std::mutex one_at_a_time;
    static std::weak_ptr<uint8_t> current;
    static size_t used = 0;
    const std::lock_guard<std::mutex> turn(one_at_a_time);
    std::shared_ptr<uint8_t> memory = current.lock();
    if (!memory || used + size > kStretch) {
      memory = stretch(kStretch);
      current = memory;
      used = 0;
    }
    used += size;
    return {memory, memory.get() + used - size};
  }

 private:
  static constexpr size_t kPage = size_t{1} << 21;
  static constexpr size_t kStretch = size_t{1} << 26;  // what nothing is written to takes no memory

  static std::shared_ptr<uint8_t> stretch(size_t size) {
    size = padded(size, kPage);
    auto* memory = static_cast<uint8_t*>(std::aligned_alloc(kPage, size));
    if (!memory) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(memory, size, MADV_HUGEPAGE);  // advice only: where the kernel refuses it, small pages work, too
#endif
    return {memory, [](uint8_t* p) { std::free(p); }};
  }
};

// The bytes of a matrix.
class Bytes {
 public:
  Bytes() = default;
  // Owned, not initialised. Throws std::bad_alloc.
  explicit Bytes(size_t size) : size_(size) {
    if (size) owned_ = HugePages::take(size);
    data_ = owned_.get();
  }
  // Borrowed: whoever makes this keeps `data` alive.
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  Bytes(Bytes&&) = default;
  Bytes& operator=(Bytes&&) = default;
  const uint8_t* data() const { return data_; }
  uint8_t* writable() { return owned_.get(); }  // owned bytes only
  size_t size() const { return size_; }

 private:
  std::shared_ptr<uint8_t> owned_;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace sparsedraft
