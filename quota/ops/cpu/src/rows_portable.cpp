#include "rows_kernels.h"

namespace quota {

extern const RowKernels row_kernels_portable;
const RowKernels row_kernels_portable = {norm, activate};

}  // namespace quota
