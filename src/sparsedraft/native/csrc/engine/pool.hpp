// Threads that share out a range of work. No result is split between two pieces, so it does not matter which thread takes which.
#pragma once

#include <atomic>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace sparsedraft {

class Pool {
 public:
  // Throws std::system_error where the system gives no more threads.
  explicit Pool(int threads) {
    try {
      for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { serve(); });
    } catch (...) {
      stop();
      throw;
    }
  }
  ~Pool() { stop(); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls work(first, last) for pieces of [0, count) of about `step`, and returns when all are done. An exception of `work`, in
  // whichever thread, is thrown here once all threads have stopped (the first one, where several threw); pieces may be left undone.
  void run(size_t count, size_t step, const std::function<void(size_t, size_t)>& work) {
    if (workers_.empty() || count <= step) {
      if (count) work(0, count);
      return;
    }
    const std::lock_guard<std::mutex> turn(one_at_a_time_);
    work_ = &work;
    count_ = count;
    step_ = step;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    turn_.fetch_add(1, std::memory_order_release);
    turn_.notify_all();
    take();
    for (int spins = 0; busy_.load(std::memory_order_acquire); ++spins) {
      if (spins > kSpins) std::this_thread::yield();
      else pause();
    }
    if (failed_) std::rethrow_exception(std::exchange(failed_, nullptr));
  }

 private:
  static constexpr int kSpins = 4000;  // about 100 microseconds: longer than the pause between two layers

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  void stop() {
    stop_ = true;
    turn_.fetch_add(1);
    turn_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }
  void take() noexcept {
    try {
      for (;;) {
        const size_t first = next_.fetch_add(step_, std::memory_order_relaxed);
        if (first >= count_) return;
        (*work_)(first, first + step_ < count_ ? first + step_ : count_);
      }
    } catch (...) {  // such as std::bad_alloc: if it left the thread it would end the process
      next_.store(count_, std::memory_order_relaxed);
      const std::lock_guard<std::mutex> lock(failing_);
      if (!failed_) failed_ = std::current_exception();
    }
  }
  void serve() {
    for (unsigned seen = 0;;) {
      for (int spins = 0; turn_.load(std::memory_order_acquire) == seen && spins < kSpins; ++spins) pause();
      turn_.wait(seen, std::memory_order_acquire);
      seen = turn_.load(std::memory_order_acquire);
      if (stop_) return;
      take();
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex one_at_a_time_, failing_;
  std::exception_ptr failed_;  // guarded by failing_ while threads work
  std::vector<std::thread> workers_;
  const std::function<void(size_t, size_t)>* work_ = nullptr;
  size_t count_ = 0, step_ = 1;
  std::atomic<size_t> next_{0};
  std::atomic<int> busy_{0};
  std::atomic<unsigned> turn_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace sparsedraft
