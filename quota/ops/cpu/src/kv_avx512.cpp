#include "attention_kernels.h"
#include "information_kernels.h"
#include "kv_kernels.h"

static_assert(LANES == 16, "compile this file for its instruction set");

namespace quota {

extern const KvKernels kv_kernels_avx512;
const KvKernels kv_kernels_avx512 = {keep, query, rotate_out, decode, softmax, products, condition};

}  // namespace quota
