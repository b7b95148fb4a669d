#include "attention_kernels.h"
#include "information_kernels.h"
#include "kv_kernels.h"

static_assert(LANES == 8, "compile this file for its instruction set");

namespace quota {

extern const KvKernels kv_kernels_avx2;
const KvKernels kv_kernels_avx2 = {keep, query, rotate_out, decode, softmax, products, condition};

}  // namespace quota
