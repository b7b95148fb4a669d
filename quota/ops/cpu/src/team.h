// Threads that share a call of a kernel: OpenMP's, which are torch's own. Torch loads its libgomp with global symbols, so
// ours binds to the same one, whatever its file is called, and one pool serves both. A pool of our own was measured
// (2 cores, torch's operators and ours in turns): the two fight for the cores, as libgomp's threads spin for
// milliseconds after an operator, and a round takes 1.5 to 2.5 times as long; 1.1 times with that spin bounded. Bounding it
// is what pays beside busy processes, and the `quota` command does so (quota/cli/__init__.py).
#pragma once

#include <omp.h>

#include <algorithm>
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

// `job(index)` for each index below `jobs`, by whoever is free: a thread that comes late, or loses its core to another
// process, holds up no more than the few jobs that it has taken. Memory that jobs need is best kept by thread.
template <class Job>
void deal(int threads, int64_t jobs, Job job) {
    threads = int(std::min<int64_t>(threads, jobs));
    if (threads < 2) {
        for (int64_t index = 0; index < jobs; ++index) job(index);
        return;
    }
    // At a time: little is left to one thread at the end, and the common counter costs nothing.
    const int64_t run = std::max<int64_t>(jobs / (16 * threads), 1);
#pragma omp parallel for schedule(dynamic, run) num_threads(threads)
    for (int64_t index = 0; index < jobs; ++index) job(index);
}
