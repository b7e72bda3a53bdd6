// The kernels of one instruction set: compiled once for each set, with its own flags and namespace.
#include "attend.h"
#include "decode.h"
#include "latent.h"
#include "linear.h"
#include "quantize.h"
#include "rows.h"

namespace BRISE_ISA {

extern const brise::Kernels KERNELS;
const brise::Kernels KERNELS = {ISA_NAME, QUERY_ROWS, quantize_row, linear_q, linear_f, add_low_rank, rms_norm, layer_norm, gelu, gelu_tanh,
                                silu_mul, gelu_mul,   add,          scale,    rope,     write_cache,  attend,   attend_latent, attend_scratch,
                                fit,      decode,     round_bf16};

}  // namespace BRISE_ISA
