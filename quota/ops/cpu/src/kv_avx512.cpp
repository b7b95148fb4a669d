#include "attention_kernels.h"
#include "kv_kernels.h"
#include "peaks_kernels.h"

static_assert(LANES == 16, "compile this file for its instruction set");

namespace quota {

extern const KvKernels kv_kernels_avx512;
const KvKernels kv_kernels_avx512 = {keep, query, rotate_out, decode, softmax, length, products, peak};

}  // namespace quota
