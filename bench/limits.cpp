// What this machine allows: memory reading, int8 multiply-add, and a fixed spin loop as a canary.
// Usage: limits (read MEGABYTES | int8 | spin) THREADS. Prints one number: bytes/s, operations/s, loops/s.
// Rates of all threads together; for spin that of the slowest thread, which is what a barrier waits for.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

using Clock = std::chrono::steady_clock;

static double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

// Runs work(thread) on all threads from one start; returns the seconds of each.
static std::vector<double> together(int threads, const std::function<void(int)>& work) {
    std::vector<double> seconds(threads);
    std::atomic<int> ready{0};
    std::vector<std::thread> pool;
    for (int thread = 0; thread < threads; ++thread)
        pool.emplace_back([&, thread] {
            ++ready;
            while (ready < threads) {}
            const auto start = Clock::now();
            work(thread);
            seconds[thread] = seconds_since(start);
        });
    for (auto& each : pool) each.join();
    return seconds;
}

// Sums a part of memory that no cache holds, in four streams with software prefetch 4 KiB ahead.
static uint64_t read_once(const uint64_t* data, size_t count) {
    const size_t quarter = count / 4;
    uint64_t sums[32] = {};
    for (size_t i = 0; i < quarter; i += 8)
        for (int stream = 0; stream < 4; ++stream) {
            const uint64_t* at = data + stream * quarter + i;
            __builtin_prefetch(at + 512);
            for (int lane = 0; lane < 8; ++lane) sums[stream * 8 + lane] += at[lane];
        }
    uint64_t sum = 0;
    for (uint64_t each : sums) sum += each;
    return sum;
}

static double read_rate(size_t megabytes, int threads) {
    const size_t bytes = megabytes << 20, part = bytes / threads / 2048 * 2048;
    void* data = nullptr;
    if (posix_memalign(&data, 2 << 20, bytes)) return 0;
#if defined(__linux__)
    madvise(data, bytes, MADV_HUGEPAGE);
#endif
    std::memset(data, 1, bytes);
    double best = 0;
    std::atomic<uint64_t> sink{0};
    for (int round = 0; round < 5; ++round) {
        const auto seconds = together(threads, [&](int thread) {
            sink += read_once(static_cast<uint64_t*>(data) + thread * (part / 8), part / 8);
        });
        best = std::max(best, part * threads / *std::max_element(seconds.begin(), seconds.end()));
    }
    free(data);
    return sink ? best : 0;
}

// The widest int8 multiply-add of this machine on registers alone; returns the operations done. 12 sums at once
// are more than latency times units. Assembly with fixed registers: compilers keep an array of sums in memory.
static double multiply_add() {
    constexpr int loops = 2'000'000;
#if defined(__AVX512VNNI__)
    for (int loop = 0; loop < loops; ++loop)
        __asm__ volatile(".irp sum, 4,5,6,7,8,9,10,11,12,13,14,15\n vpdpbusd %%zmm0, %%zmm1, %%zmm\\sum\n .endr"
                         ::: "xmm0", "xmm1", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
                             "xmm12", "xmm13", "xmm14", "xmm15");
    return 12.0 * 128 * loops;
#elif defined(__AVX2__)
    for (int loop = 0; loop < loops; ++loop)
        __asm__ volatile(".irp sum, 4,5,6,7,8,9,10,11,12,13,14,15\n vpmaddubsw %%ymm0, %%ymm1, %%ymm2\n"
                         "vpmaddwd %%ymm1, %%ymm2, %%ymm2\n vpaddd %%ymm2, %%ymm\\sum, %%ymm\\sum\n .endr"
                         ::: "xmm0", "xmm1", "xmm2", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                             "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    return 12.0 * 64 * loops;
#elif defined(__ARM_FEATURE_DOTPROD)
    for (int loop = 0; loop < loops; ++loop)
        __asm__ volatile(".irp sum, 4,5,6,7,16,17,18,19,20,21,22,23\n sdot v\\sum\\().4s, v0.16b, v1.16b\n .endr"
                         ::: "v4", "v5", "v6", "v7", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23");
    return 12.0 * 32 * loops;
#else
    return 0.0 * loops;  // not known how to reach the peak here: no share is printed
#endif
}

static double int8_rate(int threads) {
    double best = 0;
    for (int round = 0; round < 5; ++round) {
        std::vector<double> done(threads);
        const auto seconds = together(threads, [&](int thread) { done[thread] = multiply_add(); });
        // On registers alone threads do not share anything: all can do what the fastest did.
        best = std::max(best, done[0] * threads / *std::min_element(seconds.begin(), seconds.end()));
    }
    return best;
}

// About 0.1 s of dependent integer work: neither memory nor vector units, only whether the core is ours.
static double spin_rate(int threads) {
    constexpr uint64_t loops = 60'000'000;
    std::atomic<uint64_t> sink{0};
    const auto seconds = together(threads, [&](int thread) {
        uint64_t x = thread + 1;
        for (uint64_t i = 0; i < loops; ++i) x = x * 6364136223846793005ull + 1442695040888963407ull;
        sink += x;
    });
    return sink ? loops / *std::max_element(seconds.begin(), seconds.end()) : 0;
}

int main(int count, char** words) {
    if (count == 4 && !std::strcmp(words[1], "read"))
        std::printf("%.6g\n", read_rate(std::strtoull(words[2], nullptr, 10), std::atoi(words[3])));
    else if (count == 3 && !std::strcmp(words[1], "int8"))
        std::printf("%.6g\n", int8_rate(std::atoi(words[2])));
    else if (count == 3 && !std::strcmp(words[1], "spin"))
        std::printf("%.6g\n", spin_rate(std::atoi(words[2])));
    else
        return 2;
    return 0;
}
