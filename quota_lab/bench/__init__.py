"""`quota bench`: how fast and how large, against what one would run otherwise, on the machine it is called on.

    ops         one operator at a time, with weights that come from memory and not from a cache
    e2e         whole models: time to first token, decode tokens a second, peak memory, what pruning itself costs
    threads     decode tokens a second beside busy processes
    serve       servers under load (quota_lab/bench/serving)
    compress    what `quota compress` takes of memory, for models of one width and several depths
    vllm        a checkpoint in vLLM, against itself as `quota run` has it

What is compared is run in turns, never one after the other, and medians are compared: a machine that slows down slows
both. A row states a ratio, above 1 where ours is better.
"""

from quota_lab.bench.e2e import bench_e2e
from quota_lab.bench.operators import bench_operators
from quota_lab.bench.report import Report, Row
from quota_lab.bench.streaming import bench_compress
from quota_lab.bench.threads import bench_threads

__all__ = ["Report", "Row", "bench_compress", "bench_e2e", "bench_operators", "bench_threads"]
