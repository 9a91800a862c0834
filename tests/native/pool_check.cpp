// Work that throws in the threads of a pool: what it threw reaches the caller once all have stopped, and the pool goes on working.
// tests/test_out_of_memory.py builds and runs it.
#include <cstdio>
#include <new>
#include <stdexcept>

#include "../src/sparsedraft/runtime/csrc/pool.hpp"

using sparsedraft::Pool;

namespace {

bool works(Pool& pool) {
  std::atomic<size_t> sum{0};
  pool.run(1000, 3, [&](size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) sum += i;
  });
  return sum == 999 * 1000 / 2;
}

template <class Error, class Work>
bool throws(Pool& pool, size_t count, const Work& work) {
  try {
    pool.run(count, 1, work);
  } catch (const Error&) {
    return true;
  }
  return false;
}

}  // namespace

int main() {
  const auto caller = std::this_thread::get_id();
  for (const int threads : {1, 2, 4}) {
    Pool pool(threads);
    for (size_t round = 0; round < 300; ++round) {
      std::atomic<int> busy{0};
      const auto sometimes = [&](size_t first, size_t last) {  // without workers all in one piece
        ++busy;
        for (; first < last; ++first)
          if (first % 7 == round % 7) --busy, throw std::bad_alloc();
        --busy;
      };
      if (!throws<std::bad_alloc>(pool, 64, sometimes)) return std::puts("bad_alloc is lost"), 1;
      if (busy) return std::puts("somebody still works"), 1;
      if (!throws<std::runtime_error>(pool, 64, [](size_t, size_t) { throw std::runtime_error("all"); })) return std::puts("error lost"), 1;
      if (!works(pool)) return std::puts("the pool is spoilt"), 1;
    }
    std::atomic<int> others{0};
    const auto only_workers = [&](size_t, size_t) {
      if (std::this_thread::get_id() != caller) ++others, throw std::bad_alloc();
      while (threads > 1 && !others) std::this_thread::yield();
    };
    if (throws<std::bad_alloc>(pool, 64, only_workers) != (threads > 1)) return std::puts("a worker's bad_alloc is lost"), 1;
    if (!works(pool)) return std::puts("the pool is spoilt"), 1;
  }
  return std::puts("sound"), 0;
}
