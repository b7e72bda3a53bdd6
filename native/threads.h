// A few threads that work through the phases of a job together.
//
// A phase is done when its units are done, not when all threads have said so: on a shared machine a thread may be
// off its core for milliseconds, and whoever is there goes on without it. A late thread finds the units of its
// phase, or of the whole run, taken, and catches up. Counters carry the number of the run, so that a thread that
// wakes up in a later run cannot take a unit of it by mistake; `run` therefore need not wait for the late ones.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace brise {

// The units of one phase: which is next, how many are done. High half: the run; low half: the count.
class Units {
 public:
  void begin(uint32_t run, int total) {
    total_.store(total, std::memory_order_relaxed);
    done_.store((uint64_t)run << 32, std::memory_order_relaxed);
    next_.store((uint64_t)run << 32, std::memory_order_release);
  }
  int claim(uint32_t run) {  // a unit, or -1 if there is none left
    uint64_t seen = next_.load(std::memory_order_acquire);
    for (;;) {
      if ((uint32_t)(seen >> 32) != run || (int)(uint32_t)seen >= total_.load(std::memory_order_relaxed)) return -1;
      if (next_.compare_exchange_weak(seen, seen + 1, std::memory_order_acquire)) return (int)(uint32_t)seen;
    }
  }
  void finish() { done_.fetch_add(1, std::memory_order_release); }
  bool is_done(uint32_t run) const {  // also true when a later run has begun
    const uint64_t seen = done_.load(std::memory_order_acquire);
    return (uint32_t)(seen >> 32) != run || (int)(uint32_t)seen >= total_.load(std::memory_order_relaxed);
  }

 private:
  alignas(64) std::atomic<uint64_t> next_{0};
  alignas(64) std::atomic<uint64_t> done_{0};
  std::atomic<int> total_{0};
};

// What a pool runs: `begin` on the caller's thread alone, then `work` on every thread that finds the time.
class Job {
 public:
  virtual ~Job() = default;
  virtual void begin(uint32_t run) = 0;
  virtual void work(int thread, uint32_t run) = 0;  // returns when the run is done
};

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return (int)workers_.size() + 1; }
  void run(Job& job);
  void forget(const Job& job);  // when this returns, no thread is in the job any more
  void each(int units, const std::function<void(int)>& call);

  static void wait(const Units& units, uint32_t run);

 private:
  struct alignas(64) Worker {
    std::atomic<bool> is_busy{false};
    std::thread thread;
  };
  void serve(int thread, Worker& self);

  std::vector<std::unique_ptr<Worker>> workers_;
  std::mutex one_run_;
  std::atomic<Job*> job_{nullptr};
  std::atomic<uint32_t> run_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace brise
