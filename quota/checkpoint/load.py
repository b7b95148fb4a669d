"""Load a checkpoint of ours through transformers' own `from_pretrained`.

transformers looks up who prepares a quantised model by the `quant_method` of its configuration. Ours says
"compressed-tensors", so that it loads without quota too; `import quota` puts a subclass of that method's quantizer in
its place. For a configuration with the key "quota" it builds our linear layers, which have the same tensor names, and
attaches the KV cache and the Pruner afterwards. For any other it does nothing of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME
from transformers.utils.hub import cached_file

from quota.allocation.measurements import Measurements
from quota.attention.keys import KeyTransform, add_key_transforms
from quota.attention.operators import attach_operators
from quota.checkpoint.manifest import MANIFEST_FILE, verify_loading
from quota.checkpoint.save import MEASUREMENTS_FILE, RECIPE_FILE, Settings, mark, remember, settings
from quota.checkpoint.stored import check_headers, check_values
from quota.errors import QuotaError
from quota.models import family, fingerprint
from quota.pruning.pruner import Pruner
from quota.pruning.recipe import PruningRecipe
from quota.quantization.ends import empty_ends
from quota.quantization.linear import W4A4Linear


class QuotaQuantizer(CompressedTensorsHfQuantizer):
    """compressed-tensors as transformers has it, except for checkpoints that quota has written."""

    settings: Settings | None = None
    recipe: PruningRecipe | None = None
    measurements: Measurements | None = None

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        self.settings = settings(model.config)
        if self.settings is None:
            super()._process_model_before_weight_loading(model, **kwargs)
            return
        if self.quantization_config.dequantize:
            raise QuotaError("a checkpoint of quota cannot be dequantised; load the original model")
        scheme = self.settings.scheme
        files = [Path(file) for file in kwargs.get("checkpoint_files") or []]
        if files:
            present = [CONFIG_NAME, GENERATION_CONFIG_NAME, RECIPE_FILE, MEASUREMENTS_FILE]
            present += [file.name for file in files]
            verify_loading(files[0].parent, _beside(model, files, MANIFEST_FILE), present)
        if self.settings.recipe:
            if (recipe := _beside(model, files, RECIPE_FILE)) is None:
                name = model.config.name_or_path or "the model"
                raise QuotaError(
                    f"{name} belongs to a recipe but holds no {RECIPE_FILE}; save with quota.save_pretrained"
                )
            self.recipe = PruningRecipe.load(recipe)
            self.recipe.verify(model_fingerprint=fingerprint(model), scheme=scheme)
            if (measurements := _beside(model, files, MEASUREMENTS_FILE)) is not None:
                self.measurements = Measurements.load(measurements)
                depth = len(family(model).decoder_layers)
                self.measurements.verify(model_fingerprint=fingerprint(model), scheme=scheme, depth=depth)
        put_empty_layers(model, self.settings)
        if files:
            check_headers(model, files)

    def update_weight_conversions(self, weight_conversions: list[Any], *model: Any) -> list[Any]:
        """Without what takes packed tensors apart: those of our layers have the names that the model itself has.

        For a model that splits one stored weight into two (DINOv2) the inherited method is an error besides.
        """
        if self.settings is None:
            return super().update_weight_conversions(weight_conversions, *model)  # older transformers hand no model
        return weight_conversions

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        if self.settings is None:
            super()._process_model_after_weight_loading(model, **kwargs)
            return
        _check_loaded(model)
        check_values(model)
        mark(model, self.settings.scheme, self.settings.recipe)
        attach_operators(model, self.settings.scheme)
        if self.recipe is not None:
            Pruner(model, self.recipe, self.settings.scheme).attach()
        if self.measurements is not None:
            remember(model, self.measurements)


def put_empty_layers(model: PreTrainedModel, found: Settings) -> None:
    """Give a model the layers that a checkpoint with these settings has tensors for, in the place of its own."""
    scheme = found.scheme
    for name, linear in family(model).linears(scheme.modules):
        model.set_submodule(name, W4A4Linear.empty_like(linear, scheme, linear.weight.device))
        _nothing_to_draw(model.get_submodule(name.rpartition(".")[0]))
    empty_ends(model, scheme, found.tied)
    if scheme.folds and scheme.kv_bits < 16:
        add_key_transforms(family(model).text_model)


def _nothing_to_draw(parent: Any) -> None:
    """Keep transformers from drawing first weights for the linears in `parent`, which some modules do for their own."""
    if not any(True for _ in parent.parameters(recurse=False)):
        parent._is_hf_initialized = True


def _beside(model: PreTrainedModel, files: Sequence[Path], wanted: str) -> Path | None:
    """The file `wanted` of the checkpoint that `files` are the weights of; None if it has none."""
    if files and (beside := files[0].parent / wanted).exists():
        return beside
    name = model.config.name_or_path
    if not name or Path(name).is_dir():
        return None
    # A repository on the hub: transformers has fetched the weights only.
    revision = getattr(model.config, "_commit_hash", None)
    found = cached_file(name, wanted, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def _check_loaded(model: PreTrainedModel) -> None:
    """Weights that the files do not hold are left as they were allocated; transformers only mentions it."""
    for name, module in model.named_modules():
        if isinstance(module, W4A4Linear | KeyTransform):
            for tensor, buffer in module.named_buffers():
                if buffer.is_meta:
                    raise QuotaError("packed weights cannot be offloaded; load without offload_buffers")
                if not getattr(buffer, "_is_hf_initialized", False):
                    raise QuotaError(f"the checkpoint lacks {name}.{tensor}; copy it again or compress again")
