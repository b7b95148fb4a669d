"""From curves and measured drops to a schedule: the published allocator, and ours."""

from quota.allocation.paper import candidate_layers, keep_ratios, normalize_sensitivities, schedule
from quota.calibration.curves import relative_error, sensitivity
from quota.pruning.schedule import keep_count

__all__ = [
    "candidate_layers",
    "keep_count",
    "keep_ratios",
    "normalize_sensitivities",
    "relative_error",
    "schedule",
    "sensitivity",
]
