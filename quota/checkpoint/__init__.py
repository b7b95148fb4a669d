"""Save and load: an ordinary checkpoint of transformers, its recipe and its card."""

from quota.checkpoint.named import load_model
from quota.checkpoint.rebudgeting import rebudget
from quota.checkpoint.save import RECIPE_FILE, Settings, mark, save_pretrained, settings

__all__ = ["RECIPE_FILE", "Settings", "load_model", "mark", "rebudget", "save_pretrained", "settings"]
