// The thread pool: threads.h says why no thread waits for a late one.
#include "threads.h"

namespace brise {

namespace {

// Between two runs a worker spins for about 0.1 ms, the time of Python's part of a decode step, then sleeps.
// A thread that waits for the last units of a phase spins for about 50 us, then yields its core.
constexpr int SPIN_PHASE = 2000, SPIN_IDLE = 4000;  // pauses of about 25 ns

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// One phase of independent calls.
class EachJob : public Job {
 public:
  EachJob(int total, const std::function<void(int)>& call) : total_(total), call_(call) {}
  void begin(uint32_t run) override { units_.begin(run, total_); }
  void work(int, uint32_t run) override {
    for (int unit; (unit = units_.claim(run)) >= 0; units_.finish()) call_(unit);
    Pool::wait(units_, run);
  }

 private:
  int total_;
  const std::function<void(int)>& call_;
  Units units_;
};

}  // namespace

Pool::Pool(int threads) {
  try {
    for (int i = 1; i < threads; i++) {
      workers_.push_back(std::make_unique<Worker>());
      Worker& worker = *workers_.back();
      worker.thread = std::thread([this, i, &worker] { serve(i, worker); });
    }
  } catch (...) {  // the system has no more threads
    stop();
    throw;
  }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
  stop_ = true;
  run_.fetch_add(1);
  run_.notify_all();
  for (auto& worker : workers_)
    if (worker->thread.joinable()) worker->thread.join();
}

void Pool::wait(const Units& units, uint32_t run) {
  for (int i = 0; i < SPIN_PHASE; i++) {
    if (units.is_done(run)) return;
    pause();
  }
  while (!units.is_done(run)) std::this_thread::yield();
}

void Pool::serve(int thread, Worker& self) {
  uint32_t seen = 0;
  for (;;) {
    for (int i = 0; i < SPIN_IDLE && run_.load(std::memory_order_acquire) == seen; i++) pause();
    while (run_.load(std::memory_order_acquire) == seen) run_.wait(seen);
    // `is_busy` is set before the job is read: `forget` first removes the job, then waits for busy workers.
    self.is_busy.store(true);
    seen = run_.load();
    if (stop_) return;
    if (Job* job = job_.load()) job->work(thread, seen);
    self.is_busy.store(false);
  }
}

void Pool::run(Job& job) {
  std::lock_guard lock(one_run_);
  const uint32_t run = run_.load(std::memory_order_relaxed) + 1;
  job.begin(run);
  job_.store(&job);
  run_.store(run);
  run_.notify_all();
  job.work(0, run);
}

void Pool::forget(const Job& job) {
  std::lock_guard lock(one_run_);
  // Waits even if a later job has begun: a late worker may still be leaving this one.
  if (job_.load() == &job) job_.store(nullptr);
  for (auto& worker : workers_)
    while (worker->is_busy.load()) std::this_thread::yield();
}

void Pool::each(int units, const std::function<void(int)>& call) {
  EachJob job(units, call);
  run(job);
  forget(job);
}

}  // namespace brise
