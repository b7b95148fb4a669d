#include "rows_kernels.h"

static_assert(LANES == 8, "compile this file for its instruction set");

namespace quota {

extern const RowKernels row_kernels_avx2;
const RowKernels row_kernels_avx2 = {norm, activate};

}  // namespace quota
