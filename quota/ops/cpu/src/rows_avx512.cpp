#include "rows_kernels.h"

static_assert(LANES == 16, "compile this file for its instruction set");

namespace quota {

extern const RowKernels row_kernels_avx512;
const RowKernels row_kernels_avx512 = {norm, activate};

}  // namespace quota
