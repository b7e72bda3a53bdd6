// Every kernel on every instruction set that this build has and this processor runs, against plain loops in double.
//
// No Python and no framework, so that it also runs under an emulator: tests/native/test_kernels.py compiles and runs it.
// Exit code 1 if a kernel failed. The expected values never come from another kernel, the scalar ones included.
#include "checks.h"

#define BRISE_ISA by_hand  // simd.h without an instruction set: the conversions of f16 in integers
#include "simd.h"

namespace {

// The f16 conversions of the scalar kernels: all halves, and numbers around the middle between two neighbours.
void check_scalar_half(checks::Report& report) {
  checks::Tally tally(report, "any", "f16 by hand");
  for (uint32_t bits = 0; bits < 0x10000; bits++) {
    const uint16_t half = (uint16_t)bits;
    tally.begin("half %04x", bits);
    const double value = checks::half_value(half);
    tally.equal(by_hand::half_to_float(half), value);
    const float there = by_hand::half_to_float(half);
    if (std::isnan(value)) {
      tally.holds(std::isnan(checks::half_value(by_hand::float_to_half(there))), "a NaN");
      continue;
    }
    tally.equal(by_hand::float_to_half(there), half);
    if ((half & 0x7fff) >= 0x7bff) continue;  // the largest and infinity have no middle
    const float middle = (float)((value + checks::half_value((uint16_t)(half + 1))) / 2);
    for (float x : {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, middle * 2)})
      tally.equal(by_hand::float_to_half(x), checks::nearest_half(x));
  }
  for (float x : {65504.0f, 65519.996f, 65520.0f, 1e30f, INFINITY, 0x1p-25f, 0x1.000002p-25f, 0x1p-149f, 1e-30f})
    for (float signed_x : {x, -x}) tally.equal(by_hand::float_to_half(signed_x), checks::nearest_half(signed_x));
}

}  // namespace

int main() {
  checks::Report report;
  check_scalar_half(report);
  for (const brise::Kernels* const* kernels = brise::available_kernels(); *kernels; kernels++) {
    checks::check_rows(report, **kernels);
    checks::check_linear(report, **kernels);
    checks::check_attention(report, **kernels);
    checks::check_latents(report, **kernels);
  }
  std::printf("%d passed, %d failed\n", report.passed, report.failed);
  return report.failed ? 1 : 0;
}
