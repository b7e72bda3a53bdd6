// A few threads that run one function together, with a barrier inside.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace brise {

// Between two runs a worker spins for about 0.1 ms, the time of Python's part of a decode step, then sleeps.
// Inside a run the barrier spins for about 50 us and then yields: on a shared machine the other may be off its core.
class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return (int)workers_.size() + 1; }
  void run(const std::function<void(int)>& job);  // job(thread), on all; returns when all are done
  void barrier();                                 // all threads of the running job

 private:
  void work(int thread);

  std::vector<std::thread> workers_;
  std::mutex one_run_;
  const std::function<void(int)>* job_ = nullptr;
  std::atomic<uint32_t> epoch_{0};
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<int> running_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

}  // namespace brise
