#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

#if defined(QUOTA_PLAIN_TILES)
bool amx() { return true; }
#elif defined(__x86_64__) && defined(__linux__)
// Linux hands out the 8 KiB of tile registers on request only.
bool amx() {
    constexpr unsigned BFLOAT16 = 1u << 22, TILE = 1u << 24, INT8 = 1u << 25, ALL = BFLOAT16 | TILE | INT8;
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & ALL) != ALL) return false;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#else
bool amx() { return false; }
#endif

Isa detect() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return PORTABLE;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
    if (!avx512) return AVX2;
    return amx() ? AMX : AVX512;
#else
    return PORTABLE;
#endif
}

}  // namespace

Isa best_isa() {
    static const Isa best = detect();
    return best;
}

bool has_bf16(int isa) {
#if defined(__x86_64__)
    if (isa == AVX512) return best_isa() >= AVX512 && __builtin_cpu_supports("avx512bf16");
#endif
    return isa == AMX && best_isa() == AMX;
}

extern "C" {

int quota_best_isa() { return best_isa(); }

int quota_has_bf16(int isa) { return has_bf16(isa); }
}
