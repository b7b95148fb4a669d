"""What stands beside the weights of a checkpoint of ours: configuration, recipe and measurements, without the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from quota.allocation.measurements import Measurements
from quota.checkpoint.named import in_one_line
from quota.checkpoint.save import MEASUREMENTS_FILE, RECIPE_FILE, Settings, settings
from quota.errors import QuotaError
from quota.files import is_checkpoint
from quota.models import config_fingerprint
from quota.pruning.recipe import PruningRecipe


@dataclass(frozen=True)
class Described:
    """A checkpoint by its small files."""

    config: PreTrainedConfig
    settings: Settings
    recipe: PruningRecipe | None
    """None if it keeps every token."""
    measurements: Measurements | None
    """What its recipe was found by; None for the method "paper", and for checkpoints of earlier versions."""


def described(folder: Path) -> Described:
    """Read them. QuotaError for a folder that is not there or not of quota, and for measurements of another model."""
    if not folder.exists():
        raise QuotaError(f"{folder} does not exist; give a checkpoint that `quota compress` wrote")
    if not is_checkpoint(folder):
        raise QuotaError(f"{folder} was not written by quota; make a checkpoint with `quota compress`")
    with in_one_line(str(folder)):
        config = AutoConfig.from_pretrained(folder)
    found = settings(config)
    if found is None:
        raise QuotaError(f'{folder}: config.json says nothing under "quota"; compress the model again')
    if not found.recipe:
        return Described(config, found, None, None)
    recipe, file = PruningRecipe.load(folder / RECIPE_FILE), folder / MEASUREMENTS_FILE
    if not file.exists():
        return Described(config, found, recipe, None)
    measurements = Measurements.load(file)
    measurements.verify(
        model_fingerprint=config_fingerprint(config, _architecture(config)),
        scheme=found.scheme,
        depth=config.get_text_config().num_hidden_layers,
    )
    return Described(config, found, recipe, measurements)


def _architecture(config: PreTrainedConfig) -> str:
    """The class that the configuration is of."""
    return next(iter(config.architectures or []), "")
