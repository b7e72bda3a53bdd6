// Tools of the kernel checks: random numbers, the tally of one kernel, guarded memory, definitions of f16 and bf16.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "kernels.h"

namespace checks {

constexpr double U = 0x1p-24;  // float32's unit roundoff

// xorshift64*: a failure repeats on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint32_t bits() {
    state_ ^= state_ >> 12, state_ ^= state_ << 25, state_ ^= state_ >> 27;
    return (uint32_t)(state_ * 0x2545f4914f6cdd1du >> 32);
  }
  int below(int n) { return (int)(bits() % (uint32_t)n); }
  // Nearly normal: four uniform numbers, variance 1.
  float normal() {
    double sum = 0;
    for (int i = 0; i < 4; i++) sum += bits() * 0x1p-32 - 0.5;
    return (float)(sum * std::sqrt(3.0));
  }
  std::vector<float> normals(size_t n) {
    std::vector<float> out(n);
    for (auto& x : out) x = normal();
    return out;
  }

 private:
  uint64_t state_;
};

struct Report {
  int passed = 0, failed = 0;  // kernels, each on one instruction set
};

// The checks of one kernel on one instruction set; prints a line with their number at the end.
class Tally {
 public:
  Tally(Report& report, const char* isa, std::string kernel) : report_(report), isa_(isa), kernel_(std::move(kernel)) {}
  Tally(const Tally&) = delete;
  Tally& operator=(const Tally&) = delete;
  ~Tally() {
    (wrong_ ? report_.failed : report_.passed)++;
    std::printf("%-6s %-18s %8ld checks, %s, largest error %.2f of its bound\n", isa_, kernel_.c_str(), count_,
                wrong_ ? (std::to_string(wrong_) + " FAILED").c_str() : "ok", largest_);
    std::fflush(stdout);
  }

  // Names the case in the messages of the following checks.
  __attribute__((format(printf, 2, 3))) void begin(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(what_, sizeof what_, format, arguments);
    va_end(arguments);
  }
  void near(double got, double expected, double bound, long index = 0) {
    const double error = std::fabs(got - expected);
    const bool ok = error <= bound;  // false for NaN
    if (ok && bound > 0 && error / bound > largest_) largest_ = error / bound;
    count(ok, index, got, expected, bound);
  }
  void equal(double got, double expected, long index = 0) {
    count(got == expected || (std::isnan(got) && std::isnan(expected)), index, got, expected, 0);
  }
  void same_bits(const float* got, const float* expected, size_t n) {
    for (size_t i = 0; i < n; i++) count(std::memcmp(got + i, expected + i, 4) == 0, (long)i, got[i], expected[i], 0);
  }
  void holds(bool claim, const char* name) {
    count_++;
    if (!claim && wrong_++ < SHOWN) std::printf("  %s %s: %s: not %s\n", isa_, kernel_.c_str(), what_, name);
  }

 private:
  static constexpr long SHOWN = 5;

  void count(bool ok, long index, double got, double expected, double bound) {
    count_++;
    if (!ok && wrong_++ < SHOWN)
      std::printf("  %s %s: %s: at %ld got %.9g, expected %.9g within %.3g\n", isa_, kernel_.c_str(), what_, index, got,
                  expected, bound);
  }

  Report& report_;
  const char* isa_;
  std::string kernel_;
  char what_[200] = "";
  long count_ = 0, wrong_ = 0;
  double largest_ = 0;
};

// n floats that begin `shift` floats past an aligned address, between guards that a kernel must leave alone.
class Guarded {
 public:
  explicit Guarded(size_t n, size_t shift = 0) : n_(n), shift_(shift), all_(n + shift + 2 * GUARD, MARK) {}
  float* data() { return all_.data() + GUARD + shift_; }
  float& operator[](size_t i) { return data()[i]; }
  size_t size() const { return n_; }
  void fill(const std::vector<float>& from) { std::copy(from.begin(), from.end(), data()); }
  bool intact() const {
    for (size_t i = 0; i < all_.size(); i++)
      if ((i < GUARD + shift_ || i >= GUARD + shift_ + n_) && all_[i] != MARK) return false;
    return true;
  }
  static constexpr float MARK = -12345.0f;

 private:
  static constexpr size_t GUARD = 32;
  size_t n_, shift_;
  std::vector<float> all_;
};

constexpr double SIGMAS = 6.5;  // as in tests/tolerances.py

// What rounding a query to int16 may move a score by, beside keys up to `longest` (times the scores' scale): each number is off by up to half
// a unit, evenly, so the sum has a unit / sqrt(12) times the key's norm as its deviation.
inline double query_rounding(const float* q, int n, double longest) {
  double top = 0, squares = 0;
  for (int e = 0; e < n; e++) top = std::fmax(top, std::fabs(q[e])), squares += (double)q[e] * q[e];
  const double unit = std::fmax(std::sqrt(squares) / 46300, top / 32767);
  return unit * longest * std::fmin(std::sqrt(n) / 2.0, SIGMAS / std::sqrt(12.0));
}

// By IEEE 754's definition of binary16, in double.
inline double half_value(uint16_t bits) {
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
}

// The nearest half, ties to even. In units of the last place q, consecutive halves have consecutive bits.
inline uint16_t nearest_half(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double size = std::fabs((double)value);
  if (std::isnan(value)) return (uint16_t)(sign | 0x7e00);
  if (size >= 65520) return (uint16_t)(sign | 0x7c00);
  const int exponent = size < 0x1p-14 ? -14 : std::ilogb(size);
  const int q = (int)std::nearbyint(std::ldexp(size, 10 - exponent));
  return (uint16_t)(sign | ((exponent + 14) * 1024 + q));
}

inline double bfloat_value(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}

void check_rows(Report& report, const brise::Kernels& kernels);
void check_linear(Report& report, const brise::Kernels& kernels);
void check_attention(Report& report, const brise::Kernels& kernels);
void check_latents(Report& report, const brise::Kernels& kernels);

}  // namespace checks
