"""Families: what the package knows of an architecture."""

from __future__ import annotations

import pytest
import torch
from support.tiny import IMAGE, TOKENS_PER_IMAGE, tiny_batch, tiny_config, tiny_llava, tiny_prompt
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    Dinov2Config,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    PixtralVisionConfig,
    SiglipVisionConfig,
)

from quota.errors import QuotaError
from quota.models import family, fingerprint
from quota.quantization.linear import W4A4Linear
from quota.scheme import QuantizationScheme


def with_tower(vision: object, **changes: object) -> LlavaForConditionalGeneration:
    text = tiny_config().text_config
    fields = {"image_token_index": IMAGE, "vision_feature_layer": -1} | changes
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, **fields))


def tiny_dinov2() -> Dinov2Config:
    return Dinov2Config(
        hidden_size=64, mlp_ratio=1, num_hidden_layers=2, num_attention_heads=1, image_size=32, patch_size=8
    )


class TestFamily:
    def test_unknown_architecture(self) -> None:
        model = MistralForCausalLM(MistralConfig(vocab_size=96, hidden_size=64, num_hidden_layers=1))
        with pytest.raises(QuotaError, match=r"MistralForCausalLM.*LlavaForConditionalGeneration"):
            family(model)

    def test_images_are_told_apart(self) -> None:
        parts = family(tiny_llava())
        ids = tiny_batch([tiny_prompt(2, 3, seed=1), tiny_prompt(1, 5, seed=2)])["input_ids"]
        images = parts.index_images(ids, {})
        assert torch.equal(parts.visual_mask(ids), ids == IMAGE)
        for sample, count in enumerate([2, 1]):
            expected = [image for image in range(count) for _ in range(TOKENS_PER_IMAGE)]
            assert images[sample][ids[sample] == IMAGE].tolist() == expected
        assert images[ids != IMAGE].unique().tolist() == [-1]

    @pytest.mark.parametrize(
        ("tower", "strategy", "tokens"),
        [("clip", "default", 16), ("clip", "full", 17), ("siglip", "full", 16), ("dinov2", "default", 16)],
    )
    def test_tokens_of_an_image_are_those_of_the_projector(self, tower: str, strategy: str, tokens: int) -> None:
        siglip = SiglipVisionConfig(
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=32,
            patch_size=8,
            vision_use_head=False,
        )
        vision = {"clip": tiny_config().vision_config, "siglip": siglip, "dinov2": tiny_dinov2()}[tower]
        model = with_tower(vision, vision_feature_select_strategy=strategy)
        features = model.model.get_image_features(pixel_values=torch.zeros(2, 3, 32, 32)).pooler_output
        assert [len(image) for image in features] == [tokens] * 2
        images = family(model).index_images(torch.full((1, 2 * tokens), IMAGE), {})
        assert images.tolist() == [[0] * tokens + [1] * tokens]

    def test_the_blocks_of_a_dinov2_tower(self) -> None:
        model = with_tower(tiny_dinov2(), vision_feature_select_strategy="default")
        parts = family(model)
        assert list(parts.tower_blocks) == list(model.model.vision_tower.encoder.layer)
        # Six linears each: queries, keys, values, outputs, and two of the MLP.
        assert len(parts.linears(["tower"])) == 12

    def test_a_tower_whose_images_vary_in_size(self) -> None:
        vision = PixtralVisionConfig(
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=1,
            image_size=32,
            patch_size=8,
        )
        with pytest.raises(QuotaError, match="pixtral"):
            family(with_tower(vision, vision_feature_select_strategy="full"))


class TestLinears:
    def test_every_linear_of_each_part(self) -> None:
        model = tiny_llava(layers=2)
        parts = family(model)
        # A block of CLIP has 6 linears, one of Llama 7, the projector 2.
        for chosen, count in {("tower",): 12, ("projector",): 2, ("decoder",): 14}.items():
            assert len(parts.linears(chosen)) == count
        everything = parts.linears()
        assert len(everything) == 28
        assert all(model.get_submodule(name) is linear for name, linear in everything)
        assert all(isinstance(linear, nn.Linear) for _, linear in everything)
        rooms = [name.split(".")[1] for name, _ in everything]
        assert rooms == sorted(rooms, key=["vision_tower", "multi_modal_projector", "language_model"].index)
        assert not any("lm_head" in name or "embed" in name for name, _ in everything)

    def test_unknown_part(self) -> None:
        with pytest.raises(QuotaError, match="head"):
            family(tiny_llava()).linears(["head"])


class TestFingerprint:
    def test_survives_quantisation_and_reload(self, tmp_path) -> None:
        model = tiny_llava()
        expected = fingerprint(model)
        model.save_pretrained(tmp_path)
        assert fingerprint(AutoModelForImageTextToText.from_pretrained(tmp_path)) == expected
        assert fingerprint(tiny_llava("eager", seed=1).bfloat16()) == expected
        scheme = QuantizationScheme(weight_rounding="rtn")
        for name, linear in family(model).linears():
            model.set_submodule(name, W4A4Linear.from_linear(linear, scheme))
        assert fingerprint(model) == expected

    def test_tells_shapes_apart(self) -> None:
        models = [
            tiny_llava(),
            tiny_llava(layers=4),
            tiny_llava(kv_heads=2),
            with_tower(tiny_config().vision_config, vision_feature_layer=-2),
        ]
        assert len({fingerprint(model) for model in models}) == len(models)
