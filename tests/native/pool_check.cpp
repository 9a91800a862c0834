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
    using Clock = std::chrono::steady_clock;
    Clock::time_point until;
    const auto only_workers = [&](size_t, size_t) {
      if (std::this_thread::get_id() != caller) {
        ++others;
        throw std::bad_alloc();
      }
      while (threads > 1 && !others && Clock::now() < until) std::this_thread::yield();
    };
    // Once a worker has worked. Beside a busy neighbour, the caller of a pool works alone for a while.
    const auto last = Clock::now() + std::chrono::seconds(60);
    do {
      others = 0;
      until = Clock::now() + std::chrono::milliseconds(50);
      if (throws<std::bad_alloc>(pool, 64, only_workers) != (others > 0)) return fail("a worker's bad_alloc is lost");
    } while (threads > 1 && !others && Clock::now() < last);
    if (threads > 1 && !others) return fail("no worker ever works");
    if (!works(pool)) return fail("the pool is spoilt");
  }
  std::puts("sound");
  return 0;
}
