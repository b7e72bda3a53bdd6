// Mapping of files with packed weights, and their checksums. The bound is memory: each byte is read once.
#include "mapped.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <system_error>

namespace brise {

MappedFile::MappedFile(int descriptor) {
  struct stat found;
  if (fstat(descriptor, &found)) throw std::system_error(errno, std::generic_category(), "fstat");
  size_ = (size_t)found.st_size;
  if (!size_) return;
  void* p = mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor, 0);
  if (p == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
  madvise(p, size_, MADV_HUGEPAGE);  // where the file's pages in the cache are large, map them so
  data_ = (const uint8_t*)p;
}

MappedFile::~MappedFile() {
  if (data_) munmap((void*)data_, size_);
}

namespace {
// Odd, so that a step loses nothing: two different words never lead from one state to the same one.
constexpr uint64_t FACTOR = 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio
constexpr int LANES = 8, TURN = 29;
uint64_t step(uint64_t state, uint64_t word) { return std::rotl((state ^ word) * FACTOR, TURN); }
}  // namespace

uint64_t join_sums(uint64_t so_far, uint64_t piece) {
  const uint64_t mixed = step(so_far, piece);
  return mixed ^ mixed >> 32;
}

// Eight lanes of 64 bits side by side, as fast as one core reads memory. What differs in one word differs in the sum.
uint64_t sum_piece(const uint8_t* data, size_t bytes) {
  uint64_t state[LANES], words[LANES];
  for (int i = 0; i < LANES; i++) state[i] = FACTOR * (uint64_t)(i + 1);
  size_t at = 0;
  for (; at + sizeof words <= bytes; at += sizeof words) {
    std::memcpy(words, data + at, sizeof words);
    for (int i = 0; i < LANES; i++) state[i] = step(state[i], words[i]);
  }
  std::memset(words, 0, sizeof words);
  std::memcpy(words, data + at, bytes - at);
  for (int i = 0; i < LANES; i++) state[i] = step(state[i], words[i]);
  uint64_t out = bytes;
  for (const uint64_t lane : state) out = join_sums(out, lane);
  return out;
}

uint64_t sum_bytes(const uint8_t* data, size_t bytes) {
  uint64_t out = 0;
  for (size_t at = 0; at < bytes; at += SUM_BYTES) out = join_sums(out, sum_piece(data + at, std::min(SUM_BYTES, bytes - at)));
  return out;
}

}  // namespace brise
