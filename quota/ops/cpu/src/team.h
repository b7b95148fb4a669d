// Threads that share one job.
#pragma once

#include <omp.h>

#include <cstdint>

struct Member {
    int index, size;

    // Until all members have come here.
    void wait() const {
#pragma omp barrier
    }
};

// `work(member)` on `threads` members, of which the caller is the first; comes back when all are done.
template <class Work>
void share(int threads, Work work) {
#pragma omp parallel num_threads(threads)
    work(Member{omp_get_thread_num(), omp_get_num_threads()});
}

// What a member does of `count` jobs: [first, last).
inline void part(const Member& member, int64_t count, int64_t& first, int64_t& last) {
    first = count * member.index / member.size;
    last = count * (member.index + 1) / member.size;
}
