// Work that throws in the threads of a pool: the exception reaches the caller once all threads have stopped, and the pool goes on
// working. test_out_of_memory.py builds and runs this.
#include <cstdio>
#include <new>
#include <stdexcept>

#include "engine/pool.hpp"

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

int fail(const char* what) {
  std::puts(what);
  return 1;
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
        for (; first < last; ++first) {
          if (first % 7 != round % 7) continue;
          --busy;
          throw std::bad_alloc();
        }
        --busy;
      };
      if (!throws<std::bad_alloc>(pool, 64, sometimes)) return fail("bad_alloc is lost");
      if (busy) return fail("somebody still works");
      if (!throws<std::runtime_error>(pool, 64, [](size_t, size_t) { throw std::runtime_error("all"); })) return fail("error lost");
      if (!works(pool)) return fail("the pool is spoilt");
    }
    std::atomic<int> others{0};
    const auto only_workers = [&](size_t, size_t) {
      if (std::this_thread::get_id() != caller) {
        ++others;
        throw std::bad_alloc();
      }
      // not for ever: beside a busy neighbour, the caller of a pool works alone for a while
      const auto enough = std::chrono::steady_clock::now() + std::chrono::milliseconds(50);
      while (threads > 1 && !others && std::chrono::steady_clock::now() < enough) std::this_thread::yield();
    };
    bool thrown = false;
    for (int tries = 0; tries < (threads > 1 ? 400 : 1) && !thrown; ++tries) thrown = throws<std::bad_alloc>(pool, 64, only_workers);
    if (thrown != (threads > 1)) return fail("a worker's bad_alloc is lost");
    if (!works(pool)) return fail("the pool is spoilt");
  }
  std::puts("sound");
  return 0;
}
