"""Checkpoints of ours keep the architecture that transformers knows; here vLLM is led to the classes that run them.

It asks a table, by architecture, for what else is to be done to a configuration. Ours leads those with a "quota" of
their own to another architecture, before anything is made of the first, and hands all others on.
"""

from __future__ import annotations

from typing import Any

from vllm import ModelRegistry
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

from quota.checkpoint.save import settings
from quota.errors import QuotaError
from quota.serving.vllm.refusals import configure

METHOD = "quota"
"""Of quantisation, in vLLM."""
PREFIX = "Quota"
"""Of architectures of ours."""


class WholePromptConfig(ModelConfig):
    """Of a model that cannot take a prompt in pieces: vLLM's defaults follow from that, and wishes remain wishes."""

    @property
    def is_chunked_prefill_supported(self) -> bool:
        """What is dropped depends on the whole prompt."""
        return False

    @property
    def is_prefix_caching_supported(self) -> bool:
        """What a prefix leaves in the cache depends on the question behind it."""
        return False


class Ours(VerifyAndUpdateConfig):
    """For architectures of ours."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Set what a checkpoint of ours needs, and refuse what it cannot do."""
        configure(vllm_config)


def lead(architecture: str, served: str, where: str) -> None:
    """Run checkpoints of ours of this `architecture` as `served`, a class in module `where`; once is enough."""
    name = f"{PREFIX}{architecture}"
    if name in MODELS_CONFIG_MAP:
        return
    ModelRegistry.register_model(name, f"{where}:{served}")
    MODELS_CONFIG_MAP[name] = Ours
    others = MODELS_CONFIG_MAP.get(architecture, VerifyAndUpdateConfig)

    class Fork(others):
        """In place of what vLLM has there."""

        @staticmethod
        def verify_and_update_model_config(model_config: ModelConfig) -> None:
            if settings(model_config.hf_config) is None:
                others.verify_and_update_model_config(model_config)
            else:
                _rename(model_config, name)

    MODELS_CONFIG_MAP[architecture] = Fork


def _rename(model_config: Any, architecture: str) -> None:
    model_config.__class__ = WholePromptConfig
    model_config.hf_config.architectures = [architecture]
    model_config.model_arch_config.architectures = [architecture]
    found = model_config.registry.inspect_model_cls([architecture], model_config)
    model_config._model_info, model_config._architecture = found
    # Some models of vLLM's own take bytes of pictures and scale them; those of transformers take scaled ones.
    model_config.multimodal_config.mm_device_do_normalize = False


@register_quantization_config(METHOD)
class Scheme(QuantizationConfig):
    """Stands where vLLM wants to know how a checkpoint is quantised: the model's own modules know."""

    def get_name(self) -> Any:
        """In vLLM's log."""
        return METHOD

    def get_supported_act_dtypes(self) -> list[Any]:
        """Types that a model may be run in."""
        from quota.serving.vllm.layer import PackedBackend

        return PackedBackend.supported_dtypes

    @classmethod
    def get_min_capability(cls) -> int:
        """Of a GPU; none is needed."""
        return 0

    @staticmethod
    def get_config_filenames() -> list[str]:
        """It stands in config.json."""
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Scheme:
        """From what config.json says to all."""
        return cls()

    @classmethod
    def override_quantization_method(cls, hf_quant_cfg: Any, user_quant: Any, hf_config: Any = None) -> Any:
        """Ask for checkpoints of ours, which others take for compressed-tensors. QuotaError for what is not served."""
        if hf_config is None or settings(hf_config) is None:
            return None
        [architecture] = hf_config.architectures
        if MODELS_CONFIG_MAP.get(architecture) is not Ours:
            known = ", ".join(name.removeprefix(PREFIX) for name, does in MODELS_CONFIG_MAP.items() if does is Ours)
            raise QuotaError(f"quota in vLLM: {architecture} is not served; served are {known}")
        return METHOD

    def get_quant_method(self, layer: Any, prefix: str) -> None:
        """vLLM has no layer to quantise."""
        return None
