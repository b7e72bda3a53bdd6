// A pool of threads that process the phases of a job together.
//
// A phase is done when its units are done, not when all threads have arrived: on a shared machine a thread may be off
// its core for milliseconds, and the others continue without it. A late thread finds the units of its phase, or of the
// whole run, taken, and catches up. Counters carry the number of the run, so that a thread that wakes up in a later run
// cannot claim a unit of it by mistake; therefore `run` does not wait for late threads.
//
// A run that nobody waits for is done by as many more threads, which have the lowest priority that the system knows: they
// get what the others, of this process and of all, leave of the cores.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace brise {

// The units of one phase: how many are not claimed yet, how many not done. High half: the run; low half: the count.
// Counts go down to 0, so that a late thread sees in one word that nothing is left. With counts that go up, it would
// compare with a separate total, which the next run may be writing, and could claim a unit that does not exist.
class Units {
 public:
  void begin(uint32_t run, int total) {
    const uint64_t all = (uint64_t)run << 32 | (uint32_t)total;
    total_.store(total, std::memory_order_relaxed);
    undone_.store(all, std::memory_order_relaxed);
    unclaimed_.store(all, std::memory_order_release);
  }
  int claim(uint32_t run) {  // a unit, or -1 if there is none left
    uint64_t seen = unclaimed_.load(std::memory_order_acquire);
    for (;;) {
      if ((uint32_t)(seen >> 32) != run || (uint32_t)seen == 0) return -1;
      // While this unit is not finished, the run cannot end and the total cannot change.
      if (unclaimed_.compare_exchange_weak(seen, seen - 1, std::memory_order_acquire))
        return total_.load(std::memory_order_relaxed) - (int)(uint32_t)seen;
    }
  }
  void finish() { undone_.fetch_sub(1, std::memory_order_release); }
  bool is_done(uint32_t run) const {  // also true when a later run has begun
    const uint64_t seen = undone_.load(std::memory_order_acquire);
    return (uint32_t)(seen >> 32) != run || (uint32_t)seen == 0;
  }

 private:
  alignas(64) std::atomic<uint64_t> unclaimed_{0};
  alignas(64) std::atomic<uint64_t> undone_{0};
  std::atomic<int> total_{0};
};

// A job for a pool: `begin` runs on the caller's thread alone, then `work` on every thread that gets to it.
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
  void run_quietly(Job& job);  // work(size()) is the caller's, if it helps
  void forget(const Job& job);  // returns once no thread is in the job any more
  void each(int units, const std::function<void(int)>& call);

  static void wait(const Units& units, uint32_t run);

 private:
  struct alignas(64) Worker {
    std::atomic<bool> is_busy{false};
    std::thread thread;
  };
  // The threads of lowest priority; they start with the first job. All is guarded by the mutex.
  struct Quiet {
    std::vector<std::thread> threads;
    std::vector<const Job*> inside;  // by thread: the job that it has not left yet
    std::mutex mutex;
    std::condition_variable changed;
    Job* job = nullptr;
    uint32_t run = 0, done = 0;
    bool stop = false;
  };
  void serve(int thread, Worker& self);
  bool start_quiet();
  void serve_quietly(size_t thread);
  void stop();

  std::vector<std::unique_ptr<Worker>> workers_;
  Quiet quiet_;
  std::mutex one_run_;
  std::atomic<Job*> job_{nullptr};
  std::atomic<uint32_t> run_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace brise
