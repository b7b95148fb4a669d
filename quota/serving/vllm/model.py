"""A model of ours as vLLM sees one: pictures to features, rows to hidden states, hidden states to logits.

Everything in it is what `from_pretrained` makes of the checkpoint, checks included; only the decoder's loop is another
one, and the cache (quota/serving/vllm/decoder.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.utils.torch_utils import set_default_torch_dtype

from quota.attention.keys import key_transforms
from quota.checkpoint.named import in_one_line, model_folder
from quota.checkpoint.save import attached_recipe, settings
from quota.errors import QuotaError
from quota.models import family
from quota.ops.interface import CacheSpec
from quota.pruning.ranking import Choice
from quota.pruning.scorers import scorer
from quota.pruning.trace import Trace
from quota.scheme import QuantizationScheme
from quota.serving.vllm.batch import Part
from quota.serving.vllm.decoder import Decoder
from quota.serving.vllm.layer import PackedLayer
from quota.serving.vllm.pages import Pages
from quota.serving.vllm.stages import Stages


class ServedModel(nn.Module, SupportsMultiModal):
    """What families have in common; each says how pictures become features."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        name = vllm_config.model_config.model
        # What checkpoints do not store has a type of its own, and not that in which vLLM makes models.
        with in_one_line(name), set_default_torch_dtype(torch.float32):
            dtype = vllm_config.model_config.dtype
            found = AutoModelForImageTextToText.from_pretrained(model_folder(name), dtype=dtype)
        # Some versions of transformers leave what is stored under another name in the type that it has there.
        for parameter in found.parameters():
            parameter.data = parameter.data.to(dtype)
        self.hf: Any = found.eval()
        self.parts: Sequence[Part] = ()
        """Of the pass that comes next; the worker says."""
        recipe, kept = attached_recipe(self.hf), settings(self.hf.config)
        assert kept is not None
        for hook in (getattr(self.hf, name, None) for name in ("quota_pruner", "quota_cache")):
            if hook is not None:
                hook.detach()
        self.family = family(self.hf)
        if not self.family.causal:
            raise QuotaError("quota in vLLM: attention of this decoder has windows or blocks, which is not supported")
        if recipe is not None and "tower" in scorer(recipe.scorer).SIGNALS:
            raise QuotaError(f"quota in vLLM: scorer {recipe.scorer!r} reads the tower's attention, which is not kept")
        layers = self._layers(kept.scheme, Stages.of(recipe))
        vllm_config.compilation_config.static_forward_context.update({layer.name: layer for layer in layers})
        self._decoder = (Decoder(self.family, layers, kept.scheme, recipe),)

    @property
    def decoder(self) -> Decoder:
        """The loop over the decoder's layers, which are the model's own."""
        return self._decoder[0]

    def _layers(self, scheme: QuantizationScheme, stages: Stages) -> list[PackedLayer]:
        """The caches of all decoder layers."""
        decoder: Any = self.family.decoder_layers
        config, transforms = self.family.text_model.config, key_transforms(decoder)
        layers = []
        for index, (layer, part) in enumerate(zip(decoder, stages.parts(len(decoder)), strict=True)):
            width = layer.self_attn.head_dim
            pages = Pages(CacheSpec(scheme.kv_bits, width, scheme.hadamard_for(width)), config.num_key_value_heads)
            stage, keep = stages.stage(index), stages.keep(index)
            layers.append(PackedLayer(index, pages, transforms[index], stage, keep, part))
        return layers

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str] | None:
        """They are there already, and `weights` are not read."""
        return None

    def embed_multimodal(self, **kwargs: Any) -> Sequence[Tensor]:
        """Features [tokens, D] of each picture."""
        raise NotImplementedError

    def features(self, **pictures: Tensor) -> Sequence[Tensor]:
        """Visual tokens [tokens, D] of each picture, from the arguments of the model's own `get_image_features`."""
        return self.family.base.get_image_features(**pictures, return_dict=True).pooler_output

    def get_language_model(self) -> nn.Module:
        """What embeds words."""
        return self

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: Sequence[Tensor] | None = None,
        *,
        is_multimodal: Tensor | None = None,
    ) -> Tensor:
        """Words to rows [N, D], and features in the places of pictures."""
        rows = self.hf.get_input_embeddings()(input_ids)
        if multimodal_embeddings is not None and len(multimodal_embeddings) and is_multimodal is not None:
            rows[is_multimodal] = torch.cat(list(multimodal_embeddings)).to(rows.dtype)
        return rows

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Rows [N, D] through the decoder."""
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed_input_ids(input_ids)
        tables: Any = get_forward_context().attn_metadata
        if not tables:
            # vLLM measures memory by passes that belong to no request.
            return torch.zeros_like(inputs_embeds)
        return self.decoder(inputs_embeds, positions, self.parts, lambda layer: tables[layer].blocks)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """Hidden states [N, D] to logits [N, V]."""
        return self.hf.get_output_embeddings()(hidden_states)

    @contextmanager
    def record(self) -> Iterator[dict[str, Trace]]:
        """What every request prefilled inside the block keeps, by its name in the engine."""
        traces: dict[str, Trace] = {}

        def watch(part: Part, layer: int, choice: Choice) -> None:
            presence = part.presence
            assert presence is not None
            if presence.whole and part.request not in traces:
                traces[part.request] = Trace()
                traces[part.request].begin(presence, len(self.family.decoder_layers))
            traces[part.request].add(layer, presence, choice)

        self.decoder.watchers.append(watch)
        try:
            yield traces
        finally:
            self.decoder.watchers.remove(watch)
