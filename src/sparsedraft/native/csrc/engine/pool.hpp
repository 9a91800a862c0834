// Threads that share out a range of work. No result is split between two pieces, so it does not matter which thread takes which.
//
// A busy neighbour may hold up any of the threads for milliseconds. So nothing waits for a thread, only for pieces that a thread
// has taken; whoever has done its own share takes pieces of the others'; and while a thread is held up, the caller works alone for a
// while.
//
// Each thread's share is a run of neighbouring pieces: it reads memory from front to back, and what it fetches ahead of one piece
// belongs to its next. With pieces dealt out in turn, a product by a small matrix took up to 1.4 times as long, as each piece began
// with a wait for memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace sparsedraft {

class Pool {
 public:
  // Calls a function with its argument on so many threads, the caller's among them, and returns when all have: GOMP_parallel, which
  // every OpenMP library for Linux has.
  using Team = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);

  // Throws std::system_error where the system gives no more threads.
  explicit Pool(int threads) : shares_(static_cast<size_t>(std::max(1, threads))) {
    try {
      for (size_t i = 1; i < shares_.size(); ++i) workers_.emplace_back([this, i] { serve(i); });
    } catch (...) {
      stop();
      throw;
    }
  }
  // Of another library's threads: none is started, and none waits here beside those that wait there.
  Pool(int threads, Team team)
      : shares_(static_cast<size_t>(std::max(1, threads))), team_(team), team_threads_(static_cast<unsigned>(threads)) {}
  ~Pool() { stop(); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return team_ ? static_cast<int>(team_threads_) : static_cast<int>(workers_.size()) + 1; }  // with the caller's

  // Calls work(first, last) for pieces of [0, count) of about `step`, and returns when all are done. An exception of `work`, in
  // whichever thread, is thrown here once all threads have stopped (the first one, where several threw); pieces may be left undone.
  void run(size_t count, size_t step, const std::function<void(size_t, size_t)>& work) {
    if (threads() == 1 || count <= step) {
      if (count) work(0, count);
      return;
    }
    const std::lock_guard<std::mutex> turn(one_at_a_time_);
    if (team_) {
      Member member{this, publish(count, step, work), {0}};
      const auto join = [](void* of) {
        auto* m = static_cast<Member*>(of);
        m->pool->take(m->turn, m->joined.fetch_add(1));
      };
      team_(join, &member, team_threads_, 0);
      return end(member.turn);
    }
    const Time start = Clock::now();
    if (start < alone_until_) return work(0, count);
    const uint32_t number = publish(count, step, work);
    take(number, 0);
    finish(start);
    end(number);
  }

 private:
  struct Member {
    Pool* pool;
    uint32_t turn;
    std::atomic<size_t> joined;
  };
  // A thread's share of a turn's pieces; in a line of its own, as all threads look at it.
  struct alignas(64) Share {
    std::atomic<uint64_t> next{ticket(0, kClosed)};  // see `ticket`
  };

  void end(uint32_t number) {
    for (Share& share : shares_) share.next.store(ticket(number, kClosed), std::memory_order_release);
    if (failed_) std::rethrow_exception(std::exchange(failed_, nullptr));
  }

  using Clock = std::chrono::steady_clock;
  using Time = Clock::time_point;
  static constexpr int kSpins = 4000;  // about 100 microseconds: longer than the pause between two layers
  static constexpr uint32_t kClosed = UINT32_MAX;
  static constexpr auto kJudged = std::chrono::milliseconds(2);  // of turns, after which waits are weighed
  static constexpr int kMostWaiting = 4;                          // the part of them that may be waits: a quarter
  static constexpr auto kLeastAlone = std::chrono::milliseconds(4);  // about a time slice of the neighbour
  static constexpr auto kMostAlone = std::chrono::milliseconds(256);

  // What is taken next of a share: a piece of a turn. Both in one word, so that a late thread cannot take a piece of another turn.
  static constexpr uint64_t ticket(uint32_t turn, uint32_t piece) { return uint64_t{turn} << 32 | piece; }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  // Returns the number of the turn that begins.
  uint32_t publish(size_t count, size_t step, const std::function<void(size_t, size_t)>& work) {
    work_ = &work;
    count_.store(count, std::memory_order_relaxed);
    step_.store(step, std::memory_order_relaxed);
    pieces_.store(static_cast<uint32_t>((count + step - 1) / step), std::memory_order_relaxed);
    failing_.store(false, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    const uint32_t turn = turn_.load(std::memory_order_relaxed) + 1;
    for (size_t i = 0; i < shares_.size(); ++i) shares_[i].next.store(ticket(turn, begin_of(i)), std::memory_order_release);
    turn_.store(turn, std::memory_order_release);
    turn_.notify_all();
    return turn;
  }

  // The first piece of share number `i`.
  uint32_t begin_of(size_t i) const { return static_cast<uint32_t>(pieces_.load(std::memory_order_relaxed) * i / shares_.size()); }

  // Takes pieces of this turn until there are none: those of share number `own` first. From the moment a piece is taken until it is
  // done, the turn cannot end.
  void take(uint32_t turn, size_t own) noexcept {
    for (size_t i = 0; i < shares_.size(); ++i) take_share(turn, (own + i) % shares_.size());
  }
  void take_share(uint32_t turn, size_t number) noexcept {
    std::atomic<uint64_t>& at = shares_[number].next;
    uint64_t next = at.load(std::memory_order_acquire);
    for (;;) {
      const auto piece = static_cast<uint32_t>(next);
      // pieces_ may be of the next turn already: then `at` has changed, and the exchange fails
      if (next >> 32 != turn || piece >= begin_of(number + 1)) return;
      if (!at.compare_exchange_weak(next, next + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      work_on(piece);
      next = at.load(std::memory_order_acquire);
    }
  }

  void work_on(uint32_t piece) noexcept {
    const size_t count = count_.load(std::memory_order_relaxed);
    const size_t step = step_.load(std::memory_order_relaxed);
    const uint32_t pieces = pieces_.load(std::memory_order_relaxed);
    const size_t first = piece * step;
    if (!failing_.load(std::memory_order_relaxed)) {
      try {
        (*work_)(first, first + step < count ? first + step : count);
      } catch (...) {  // such as std::bad_alloc: if it left the thread it would end the process
        if (!failing_.exchange(true)) failed_ = std::current_exception();
      }
    }
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == pieces) done_.notify_all();
  }

  // Waits for the pieces that others have taken. Where too much of the time goes by so, the next turns are the caller's alone.
  void finish(Time start) {
    const Time own_end = Clock::now();
    const uint32_t pieces = pieces_.load(std::memory_order_relaxed);
    for (int spins = 0; spins < kSpins && done_.load(std::memory_order_acquire) != pieces; ++spins) pause();
    for (uint32_t done; (done = done_.load(std::memory_order_acquire)) != pieces;) done_.wait(done, std::memory_order_acquire);
    const Time end = Clock::now();
    judge(own_end - start, end - own_end, end);
  }

  // Threads that run wait for each other about as long as a piece takes. Waits are longer where one of them does not run.
  void judge(Clock::duration worked, Clock::duration waited, Time now) {
    worked_ += worked;
    waited_ += waited;
    if (worked_ + waited_ < kJudged) return;
    if (waited_ * kMostWaiting > worked_ + waited_) {
      alone_until_ = now + alone_;
      alone_ = std::min(2 * alone_, Clock::duration(kMostAlone));
    } else {
      alone_ = kLeastAlone;
    }
    worked_ = waited_ = {};
  }

  void serve(size_t own) {
    for (uint32_t seen = 0;;) {
      for (int spins = 0; turn_.load(std::memory_order_acquire) == seen && spins < kSpins; ++spins) pause();
      turn_.wait(seen, std::memory_order_acquire);
      seen = turn_.load(std::memory_order_acquire);
      if (stop_) return;
      take(seen, own);
    }
  }
  void stop() {
    stop_ = true;
    turn_.fetch_add(1);
    turn_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  std::mutex one_at_a_time_;
  std::vector<Share> shares_;  // one a thread
  std::vector<std::thread> workers_;
  Team team_ = nullptr;
  unsigned team_threads_ = 0;

  // The turn: set before next_ opens it, read by whoever has taken a piece.
  const std::function<void(size_t, size_t)>* work_ = nullptr;
  std::atomic<size_t> count_{0}, step_{1};
  std::atomic<uint32_t> pieces_{0};
  std::exception_ptr failed_;  // written by the first that sets failing_
  std::atomic<bool> failing_{false};

  std::atomic<uint32_t> done_{0};  // pieces
  std::atomic<uint32_t> turn_{0};
  std::atomic<bool> stop_{false};

  // Only the caller's.
  Clock::duration worked_{}, waited_{};
  Clock::duration alone_ = kLeastAlone;
  Time alone_until_{};
};

}  // namespace sparsedraft
