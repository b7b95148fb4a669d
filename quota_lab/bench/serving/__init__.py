"""`quota bench serve`: what a server does under load, and whether it stands what clients do to it.

Any OpenAI-compatible server, by its address: `client` asks one question and notes when what came, `load` asks many as
users would, `soak` as nobody should.
"""

from quota_lab.bench.serving.load import Load, bench_serve
from quota_lab.bench.serving.soak import soak

__all__ = ["Load", "bench_serve", "soak"]
