// Packed weights in a file: mapped as read-only memory, which all processes share, and summed to tell whether they are whole.
#pragma once

#include <cstddef>
#include <cstdint>

namespace brise {

// A file's bytes. They stay when the file is renamed or deleted; a file that is cut while it is mapped ends the process.
class MappedFile {
 public:
  explicit MappedFile(int descriptor);  // which may be closed afterwards
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// Bytes that are summed by themselves, so that several threads can share the work.
constexpr size_t SUM_BYTES = 1u << 20;
uint64_t sum_piece(const uint8_t* data, size_t bytes);
// Puts the sums of pieces together, in their order.
uint64_t join_sums(uint64_t so_far, uint64_t piece);
uint64_t sum_bytes(const uint8_t* data, size_t bytes);

}  // namespace brise
