// How a block of 32 columns of a weight tile is read: native/formats.h as GLSL. The module is compiled with one of the formats
// defined. A word is 32 bits; the words of a plane are its 16 rows.
#ifndef FORMATS_GLSL
#define FORMATS_GLSL

#define SCALE_D 0     // f16 d[16]
#define SCALE_DM 1    // f16 d[16], m[16]
#define SCALE_E 2     // u8 e[16]
#define SCALE_K 3     // u8 s[16], m[16]; head d, dmin
#define SCALE_K32 4   // i8 s[16]; head d
#define SCALE_K16 5   // i8 s[2][16]; head d
#define SCALE_K16M 6  // u8 (s | m << 4)[2][16]; head d, dmin

#if defined(Q4_0)
#define LOW 4
#define HIGH 0
#define SCALE SCALE_D
#define OFFSET 8
#elif defined(Q4_1)
#define LOW 4
#define HIGH 0
#define SCALE SCALE_DM
#define OFFSET 0
#elif defined(Q5_0)
#define LOW 4
#define HIGH 1
#define SCALE SCALE_D
#define OFFSET 16
#elif defined(Q5_1)
#define LOW 4
#define HIGH 1
#define SCALE SCALE_DM
#define OFFSET 0
#elif defined(Q8_0)
#define LOW 8
#define HIGH 0
#define SCALE SCALE_D
#define OFFSET 128
#elif defined(IQ4_NL)
#define LOW 4
#define HIGH 0
#define SCALE SCALE_D
#define OFFSET 0
#define NUMBERS uvec4(0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u)
#elif defined(MXFP4)
#define LOW 4
#define HIGH 0
#define SCALE SCALE_E
#define OFFSET 0
#define NUMBERS uvec4(0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu)
#elif defined(Q2_K)
#define LOW 2
#define HIGH 0
#define SCALE SCALE_K16M
#define OFFSET 0
#elif defined(Q3_K)
#define LOW 2
#define HIGH 1
#define SCALE SCALE_K16
#define OFFSET 4
#elif defined(Q4_K)
#define LOW 4
#define HIGH 0
#define SCALE SCALE_K
#define OFFSET 0
#elif defined(Q5_K)
#define LOW 4
#define HIGH 1
#define SCALE SCALE_K
#define OFFSET 0
#elif defined(Q6_K)
#define LOW 4
#define HIGH 2
#define SCALE SCALE_K16
#define OFFSET 32
#elif defined(IQ4_XS)
#define LOW 4
#define HIGH 0
#define SCALE SCALE_K32
#define OFFSET 0
#define NUMBERS uvec4(0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u)
#endif

#include "half.glsl"

// Number `row` of 16 that lie two or four a word.
float half_of(uint word, uint row) { return from_half(word >> 16u * (row & 1u) & 0xffffu); }
uint byte_of(uint word, uint row) { return word >> 8u * (row & 3u) & 0xffu; }
float signed_byte_of(uint word, uint row) { return float(bitfieldExtract(int(word), int(8u * (row & 3u)), 8)); }

#ifdef LOW
#define IS_K (SCALE >= SCALE_K)
#define HAS_HALVES (SCALE == SCALE_K16 || SCALE == SCALE_K16M)  // scales for 16 columns
#define HAS_MIN (SCALE == SCALE_DM || SCALE == SCALE_K || SCALE == SCALE_K16M)
#define HEAD_WORDS (!IS_K ? 0 : HAS_MIN ? 16 : 8)
#define SCALE_WORDS (SCALE == SCALE_DM ? 16 : SCALE == SCALE_E || SCALE == SCALE_K32 ? 4 : 8)
#define BLOCK_WORDS (SCALE_WORDS + 16 * (LOW + HIGH))

uint tile_words(uint cols) { return cols / 32u * BLOCK_WORDS + (IS_K ? cols / 256u * HEAD_WORDS : 0u); }

// The first word of a tile's 256 columns number `chunk`, which is the head of formats that have one.
uint chunk_word(uint chunk) { return chunk * (8u * BLOCK_WORDS + HEAD_WORDS); }

// The four codes of quad j, a byte each, from the words of the block's planes.
uint codes(uint words[LOW + HIGH], int j) {
#if LOW == 8
  return words[j];
#else
#if LOW == 4
  uint code = words[j % 4] >> j / 4 * 4 & 0x0f0f0f0fu;
#else
  uint code = words[j / 4] >> 2 * (j % 4) & 0x03030303u;
#endif
#if HIGH == 1
  code |= (words[LOW] >> j & 0x01010101u) << LOW;
#elif HIGH == 2
  code |= (words[LOW + j / 4] >> 2 * (j % 4) & 0x03030303u) << LOW;
#endif
  return code;
#endif
}
#endif

#endif
