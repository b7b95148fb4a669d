"""Recipe, schedule and scorers, and the Pruner that runs them inside a model's own forward pass."""

from quota.pruning.pruner import Pruner, is_pruned, record
from quota.pruning.recipe import PruningRecipe
from quota.pruning.trace import Trace

__all__ = ["Pruner", "PruningRecipe", "Trace", "is_pruned", "record"]
