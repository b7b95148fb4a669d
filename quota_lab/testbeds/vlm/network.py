"""The model as it is trained: a frozen tower, a projector, and a frozen decoder with low-rank additions.

Same mathematics as the stock model that is built of it, with what training needs: every linear layer of the decoder
in bfloat16, only answers through the output layer, and hidden states from the middle of the decoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quota_lab.testbeds.vlm import attention
from quota_lab.testbeds.vlm.lessons import IGNORE, VISUAL, Batch, to_float
from quota_lab.testbeds.vlm.losses import GROUND_LAYER, Heads, answers
from quota_lab.testbeds.vlm.low_rank import attach
from quota_lab.testbeds.vlm.projector import Projector


class Network:
    """`trained` holds all that is trained: projector, adapter, and the heads of the auxiliary losses."""

    def __init__(self, model: Any, tokenizer: Any, rank: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.layer: int = model.config.vision_feature_layer
        model.to(self.device)
        self.tower = model.model.vision_tower.bfloat16().requires_grad_(False)
        self.decoder = model.model.language_model
        self.decoder.config._attn_implementation = attention.NAME if self.device.type == "cpu" else "sdpa"
        embeddings = self.decoder.embed_tokens.weight
        self.adapters = attach(self.decoder, rank)
        # Not what was attached: A and B stay in float32.
        self.decoder.embed_tokens.bfloat16()
        self.decoder.norm.bfloat16()
        for layer in self.decoder.layers:
            layer.input_layernorm.bfloat16()
            layer.post_attention_layernorm.bfloat16()
        self.decoder.requires_grad_(False)
        self.ground_layer = min(GROUND_LAYER, len(self.decoder.layers) - 1)
        self.projector = Projector(model.config.vision_config.hidden_size, embeddings.shape[1])
        self.heads = Heads(embeddings, tokenizer)
        adapters = nn.ModuleDict({name.replace(".", "/"): part for name, part in self.adapters.items()})
        adapters.requires_grad_(True)
        self.trained = nn.ModuleDict({"projector": self.projector, "heads": self.heads, "adapter": adapters})
        self.trained.to(self.device)

    def compile(self) -> None:
        for layer in self.decoder.layers:
            layer.compile(dynamic=False)  # batches come in few sizes

    @torch.no_grad()
    def see(self, pixels: Tensor) -> Tensor:
        """The tower's features [B, 256, D] of pictures [B, 224, 224, 3] uint8."""
        hidden = self.tower.embeddings(to_float(pixels).bfloat16())
        for block in self.tower.encoder.layer[: self.layer]:
            hidden = block(hidden)
        return hidden[:, 1:]

    def project(self, features: Tensor) -> Tensor:
        """Visual tokens [B, 256, D]."""
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.projector(features)

    def look(self, visual: Tensor, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses of the patches, and shares that are right."""
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.heads.patches(visual, batch.labels)

    def read(self, visual: Tensor, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses of nouns and answers, and shares that are right."""
        text = self.decoder.embed_tokens(batch.ids)
        first = int((batch.turns[0] == -1).sum()) - VISUAL
        hidden = torch.cat((text[:, :first], visual.to(text.dtype), text[:, first + VISUAL :]), 1)
        middle, last = self.decode(hidden, batch)
        chosen = batch.targets != IGNORE
        logits = last[chosen] @ self.decoder.embed_tokens.weight.T
        losses, right = self.heads.nouns(middle, batch.grounds)
        losses["answer"], told = answers(logits, batch.targets, batch.turns, batch.tasks)
        return losses, right | told

    def decode(self, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Embeddings [B, L, D] -> hidden states behind `ground_layer` layers and behind the last norm."""
        places = self.decoder.rotary_emb(hidden, batch.positions)
        mask = torch.where(batch.mask(), 0.0, torch.finfo(hidden.dtype).min).to(hidden.dtype)
        middle = hidden
        for index, layer in enumerate(self.decoder.layers):
            hidden = layer(hidden, attention_mask=mask, position_embeddings=places)
            if index + 1 == self.ground_layer:
                middle = hidden
        return middle, self.decoder.norm(hidden)
