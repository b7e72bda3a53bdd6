// How a tile of 16 weight rows lies in memory, and how a kernel reads codes and scales from it.
//
// Columns come in blocks of 32 = 8 quads of 4. A quad of 16 rows is 64 bytes, row r at bytes 4r..4r+3.
// Codes are unsigned; a code is split over planes of 64 bytes:
//   low 4 bits: plane i (0..3) has quad i in the low nibble and quad i + 4 in the high one
//   low 2 bits: plane i (0..1) has quads 4i..4i+3 at bits 0, 2, 4, 6
//   low 8 bits: plane i (0..7) is quad i
//   high 1 bit: one plane, quad j at bit j        high 2 bits: plane i (0..1), quads 4i..4i+3 at bits 0, 2, 4, 6
// A block is [scales][low planes][high planes]; K formats have a head [d][dmin] before every 8 blocks.
//   scale  D: f16 d[16]                     w = d * (code - offset)            Q4_0 Q5_0 Q8_0; d * table[code] IQ4_NL
//         DM: f16 d[16], f16 m[16]          w = d * code + m                   Q4_1 Q5_1
//          E: u8 e[16]                      w = 2^(e - 128) * table[code]      MXFP4
//          K: u8 s[16], u8 m[16]            w = d * s * code - dmin * m        Q4_K Q5_K
//        K32: i8 s[16]                     w = d * s * table[code]            IQ4_XS
//        K16: i8 s[2][16]                   w = d * s * (code - offset)        Q3_K Q6_K, groups of 16
//       K16M: u8 (s | m << 4)[2][16]        w = d * s * code - dmin * m        Q2_K, groups of 16
// Sizes are within 3 % of the file's. The file's exact scales are kept, so no number changes.
#pragma once

#include "kernels.h"

namespace brise {

enum class Scale { D, DM, E, K, K32, K16, K16M };

// What the codes of four bits stand for: themselves, or one of sixteen numbers.
enum class Table { NONE, IQ4, FP4 };
// IQ4_NL and IQ4_XS: closer together where weights are frequent.
alignas(16) constexpr int8_t IQ4_NUMBERS[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
// MXFP4: a sign, two bits of exponent and one of mantissa (OCP Microscaling Formats 1.0), times 2, so that all are whole.
alignas(16) constexpr int8_t FP4_NUMBERS[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

template <int LOW_, int HIGH_, Scale SCALE_, int OFFSET_, Table TABLE_ = Table::NONE>
struct Layout {
  static constexpr Table TABLE = TABLE_;
  static constexpr const int8_t* NUMBERS = TABLE == Table::IQ4 ? IQ4_NUMBERS : FP4_NUMBERS;
  static constexpr int LOW = LOW_, HIGH = HIGH_, OFFSET = OFFSET_;
  static constexpr Scale SCALE = SCALE_;
  static constexpr bool IS_K = SCALE == Scale::K || SCALE == Scale::K32 || SCALE == Scale::K16 || SCALE == Scale::K16M;
  static constexpr bool HALVES = SCALE == Scale::K16 || SCALE == Scale::K16M;  // scales for 16 columns
  static constexpr bool HAS_MIN = SCALE == Scale::DM || SCALE == Scale::K || SCALE == Scale::K16M;
  static constexpr int HEAD_BYTES = !IS_K ? 0 : HAS_MIN ? 64 : 32;
  static constexpr int SCALE_BYTES = SCALE == Scale::DM ? 64 : SCALE == Scale::E || SCALE == Scale::K32 ? 16 : 32;
  static constexpr int LOW_BYTES = 64 * LOW, HIGH_BYTES = 64 * HIGH;
  static constexpr int BLOCK_BYTES = SCALE_BYTES + LOW_BYTES + HIGH_BYTES;
  static constexpr size_t bytes(int cols) {
    return (size_t)(cols / 32) * BLOCK_BYTES + (IS_K ? (size_t)(cols / 256) * HEAD_BYTES : 0);
  }
};

using LayoutQ4_0 = Layout<4, 0, Scale::D, 8>;
using LayoutQ4_1 = Layout<4, 0, Scale::DM, 0>;
using LayoutQ5_0 = Layout<4, 1, Scale::D, 16>;
using LayoutQ5_1 = Layout<4, 1, Scale::DM, 0>;
using LayoutQ8_0 = Layout<8, 0, Scale::D, 128>;
using LayoutIQ4_NL = Layout<4, 0, Scale::D, 0, Table::IQ4>;
using LayoutMXFP4 = Layout<4, 0, Scale::E, 0, Table::FP4>;
using LayoutQ2_K = Layout<2, 0, Scale::K16M, 0>;
using LayoutQ3_K = Layout<2, 1, Scale::K16, 4>;
using LayoutQ4_K = Layout<4, 0, Scale::K, 0>;
using LayoutQ5_K = Layout<4, 1, Scale::K, 0>;
using LayoutQ6_K = Layout<4, 2, Scale::K16, 32>;
using LayoutIQ4_XS = Layout<4, 0, Scale::K32, 0, Table::IQ4>;

// Calls f with the layout of a block format.
template <class Call>
void with_layout(Format format, Call&& f) {
  switch (format) {
    case Format::Q4_0: f(LayoutQ4_0{}); break;
    case Format::Q4_1: f(LayoutQ4_1{}); break;
    case Format::Q5_0: f(LayoutQ5_0{}); break;
    case Format::Q5_1: f(LayoutQ5_1{}); break;
    case Format::Q8_0: f(LayoutQ8_0{}); break;
    case Format::IQ4_NL: f(LayoutIQ4_NL{}); break;
    case Format::MXFP4: f(LayoutMXFP4{}); break;
    case Format::Q2_K: f(LayoutQ2_K{}); break;
    case Format::Q3_K: f(LayoutQ3_K{}); break;
    case Format::Q4_K: f(LayoutQ4_K{}); break;
    case Format::Q5_K: f(LayoutQ5_K{}); break;
    case Format::Q6_K: f(LayoutQ6_K{}); break;
    case Format::IQ4_XS: f(LayoutIQ4_XS{}); break;
    default: break;
  }
}

}  // namespace brise
