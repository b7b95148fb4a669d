#include "attention_kernels.h"
#include "information_kernels.h"
#include "kv_kernels.h"

namespace quota {

extern const KvKernels kv_kernels_portable;
const KvKernels kv_kernels_portable = {keep, query, rotate_out, decode, softmax, products, condition};

}  // namespace quota
