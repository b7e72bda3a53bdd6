// Finds the instruction sets of this build that this processor runs.
#include "kernels.h"

#ifdef BRISE_ARM
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace scalar { extern const brise::Kernels KERNELS; }
#ifdef BRISE_X86
namespace avx512 { extern const brise::Kernels KERNELS; }
namespace avx2 { extern const brise::Kernels KERNELS; }
#endif
#ifdef BRISE_ARM
namespace neon { extern const brise::Kernels KERNELS; }
#endif

namespace brise {

const Kernels* const* available_kernels() {
  static const Kernels* found[4];
  if (found[0]) return found;
  int n = 0;
#ifdef BRISE_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
    found[n++] = &avx512::KERNELS;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found[n++] = &avx2::KERNELS;
#endif
#ifdef BRISE_ARM
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) found[n++] = &neon::KERNELS;  // SDOT
#endif
  found[n++] = &scalar::KERNELS;
  return found;
}

}  // namespace brise
