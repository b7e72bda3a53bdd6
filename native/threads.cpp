// The thread pool: see threads.h for who waits how.
#include "threads.h"

namespace brise {

namespace {

constexpr int SPIN_BARRIER = 2000, SPIN_IDLE = 4000;  // pauses of about 25 ns

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Done>
void spin_then_yield(Done&& done) {
  for (int i = 0; i < SPIN_BARRIER; i++) {
    if (done()) return;
    pause();
  }
  while (!done()) std::this_thread::yield();
}

}  // namespace

Pool::Pool(int threads) {
  for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { work(i); });
}

Pool::~Pool() {
  stop_ = true;
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::work(int thread) {
  uint32_t seen = 0;
  for (;;) {
    for (int i = 0; i < SPIN_IDLE && epoch_.load(std::memory_order_acquire) == seen; i++) pause();
    while (epoch_.load(std::memory_order_acquire) == seen) epoch_.wait(seen);
    seen = epoch_.load(std::memory_order_acquire);
    if (stop_) return;
    (*job_)(thread);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

void Pool::run(const std::function<void(int)>& job) {
  std::lock_guard lock(one_run_);
  job_ = &job;
  running_.store((int)workers_.size(), std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  job(0);
  spin_then_yield([this] { return running_.load(std::memory_order_acquire) == 0; });
}

void Pool::barrier() {
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size()) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
  } else {
    spin_then_yield([this, phase] { return phase_.load(std::memory_order_acquire) != phase; });
  }
}

}  // namespace brise
