// The thread pool: threads.h says why no thread waits for a late one.
#include "threads.h"

#include <algorithm>
#include <chrono>

#if defined(__linux__)
#include <sched.h>
#endif

namespace brise {

namespace {

// Between two runs a worker spins for about 0.1 ms, the time of Python's part of a decode step, then sleeps.
// A thread that waits for the last units of a phase spins for about 50 us, then yields its core.
constexpr int SPIN_PHASE = 2000, SPIN_IDLE = 4000;  // pauses of about 25 ns

// How long a caller leaves a quiet run to the threads of lowest priority. On a machine that is busy for longer, the caller
// helps: somebody may have begun to wait for the next run.
constexpr std::chrono::milliseconds QUIET_WAIT{100};

// Work of this thread gives way to all other work of the machine. There is no way back for a user without privileges.
void take_lowest_priority() {
#if defined(__linux__)
  const sched_param priority{};
  sched_setscheduler(0, SCHED_IDLE, &priority);  // of the calling thread; without it, the thread is as any other
#endif
}

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
  {
    std::lock_guard lock(quiet_.mutex);
    quiet_.stop = true;
  }
  quiet_.changed.notify_all();
  for (auto& thread : quiet_.threads) thread.join();
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

// Starts the threads of lowest priority, once; whether there is one.
bool Pool::start_quiet() {
  std::lock_guard lock(quiet_.mutex);
  if (!quiet_.threads.empty()) return true;
  quiet_.inside.assign((size_t)size(), nullptr);
  try {
    for (size_t i = 0; i < quiet_.inside.size(); i++) quiet_.threads.emplace_back([this, i] { serve_quietly(i); });
  } catch (...) {  // the system has no more threads; those that are there are enough
  }
  return !quiet_.threads.empty();
}

void Pool::run_quietly(Job& job) {
  std::unique_lock one(one_run_);
  if (!start_quiet()) {
    one.unlock();
    return run(job);
  }
  const uint32_t run = run_.load(std::memory_order_relaxed) + 1;
  job.begin(run);
  job_.store(nullptr);  // workers that are still awake take no part
  run_.store(run);
  std::unique_lock lock(quiet_.mutex);
  quiet_.job = &job;
  quiet_.run = run;
  quiet_.changed.notify_all();
  if (!quiet_.changed.wait_for(lock, QUIET_WAIT, [&] { return quiet_.done == run; })) {
    lock.unlock();
    job.work(size(), run);
    lock.lock();
  }
  quiet_.job = nullptr;  // threads that have not come to it leave it alone
}

void Pool::serve_quietly(size_t thread) {
  take_lowest_priority();
  std::unique_lock lock(quiet_.mutex);
  for (uint32_t seen = 0;;) {
    quiet_.changed.wait(lock, [&] { return quiet_.stop || seen != quiet_.run; });
    if (quiet_.stop) return;
    seen = quiet_.run;
    Job* job = quiet_.job;
    if (!job) continue;
    quiet_.inside[thread] = job;
    lock.unlock();
    job->work((int)thread, seen);  // returns when the run is done
    lock.lock();
    quiet_.inside[thread] = nullptr;
    if (quiet_.run == seen) quiet_.done = seen;
    quiet_.changed.notify_all();
  }
}

void Pool::forget(const Job& job) {
  std::lock_guard lock(one_run_);
  // Waits even if a later job has begun: a late worker may still be leaving this one.
  if (job_.load() == &job) job_.store(nullptr);
  for (auto& worker : workers_)
    while (worker->is_busy.load()) std::this_thread::yield();
  std::unique_lock quiet(quiet_.mutex);
  quiet_.changed.wait(quiet, [&] { return std::find(quiet_.inside.begin(), quiet_.inside.end(), &job) == quiet_.inside.end(); });
}

void Pool::each(int units, const std::function<void(int)>& call) {
  EachJob job(units, call);
  run(job);
  forget(job);
}

}  // namespace brise
