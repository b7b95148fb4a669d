// What the entry points of norms and activations (rows.cpp) and the kernels of each instruction set know of each other.
// Definitions: quota/ops/reference/rows.py.
#pragma once

#include <cstdint>

namespace quota {

// Rows [rows, columns] of `type` (0 float32, 1 bfloat16, 2 float16), one behind the other; y is like x.
struct NormRows {
    const void* x;
    int type;
    int64_t columns;
    const void* weight;  // [columns]
    const void* bias;    // [columns] or null
    float eps;
    bool centred, offset;
    void* y;
};

// In the order of ACTIVATIONS in quota/ops/interface.py.
enum Activation { SILU = 0, GELU = 1, GELU_TANH = 2, QUICK_GELU = 3, ACTIVATIONS = 4 };

// y = activation(x) * up, or activation(x) where there is no `up`; as many numbers in each.
struct Activated {
    const void* x;
    const void* up;
    int type;
    Activation activation;
    void* y;
};

// A number's result depends on its row alone, or on nothing but itself: not on where [first, last) begins and ends.
struct RowKernels {
    void (*norm)(const NormRows& job, int64_t first, int64_t last);      // of rows
    void (*activate)(const Activated& job, int64_t first, int64_t last);  // of numbers
};

}  // namespace quota
