// Which instruction sets the kernels may use on this machine. Each level includes those before it.
#pragma once

enum Isa { PORTABLE = 0, AVX2 = 1, AVX512 = 2, AMX = 3 };

// The highest level that processor and operating system allow; asks the system for AMX the first time.
Isa best_isa();

// Whether there are products of bfloat16 with this level, in tiles or in vectors. Levels below AMX say nothing of that.
bool has_bf16(int isa);
