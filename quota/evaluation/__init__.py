"""Measure a model on questions with known answers: accuracy with its interval, speed, and what a prompt costs."""

from quota.evaluation.answers import matches, normalize_answer
from quota.evaluation.evaluate import Evaluation, evaluate
from quota.evaluation.footprint import Footprint, footprint
from quota.evaluation.statistics import accuracy_interval, difference_interval, retention, retention_interval
from quota.pruning.schedule import prefill_flops_ratio

__all__ = [
    "Evaluation",
    "Footprint",
    "accuracy_interval",
    "difference_interval",
    "evaluate",
    "footprint",
    "matches",
    "normalize_answer",
    "prefill_flops_ratio",
    "retention",
    "retention_interval",
]
