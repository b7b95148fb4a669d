#include "attention_kernels.h"
#include "kv_kernels.h"
#include "peaks_kernels.h"

namespace quota {

extern const KvKernels kv_kernels_portable;
const KvKernels kv_kernels_portable = {keep, query, rotate_out, decode, softmax, length, products, peak};

}  // namespace quota
