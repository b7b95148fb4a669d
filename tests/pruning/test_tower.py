"""Attention of the vision tower, against what the tower's own eager attention returns."""

from __future__ import annotations

import pytest
import torch
from support.families import TINY
from support.pruned import recipe_for
from support.tiny import TOKENS_PER_IMAGE, tiny_batch, tiny_llava, tiny_prompt
from support.tiny_testbed import make_model

from quota.errors import QuotaError
from quota.models import family
from quota.pruning.pruner import Pruner, record
from quota.pruning.tower import TowerAttention, class_attention


def test_is_that_of_the_class_token_in_the_feature_layer() -> None:
    model = tiny_llava()
    batch = tiny_batch([tiny_prompt(2, 3, seed=1), tiny_prompt(1, 5, seed=2)])
    parts = family(model)
    watch = TowerAttention(parts)
    images = parts.index_images(batch["input_ids"], batch)
    with torch.no_grad():
        model(**batch)
        received = watch.received(images)
        tower = model.model.vision_tower
        tower.set_attn_implementation("eager")
        weights = tower(batch["pixel_values"], output_attentions=True).attentions
    expected = weights[model.config.vision_feature_layer][:, :, 0, 1:].mean(dim=1)
    torch.testing.assert_close(received[images >= 0].view(3, TOKENS_PER_IMAGE), expected)
    assert not received[images < 0].any()
    torch.testing.assert_close(watch.received(images.repeat_interleave(2, 0)), received.repeat_interleave(2, 0))


def test_feature_layers_may_be_counted_from_either_end() -> None:
    model = tiny_llava()
    batch = tiny_batch([tiny_prompt(1, 3, seed=1)])
    parts = family(model)
    images = parts.index_images(batch["input_ids"], batch)
    layer, depth = model.config.vision_feature_layer, len(parts.tower_blocks)
    received = []
    for chosen in (layer, depth + 1 + layer):
        model.config.vision_feature_layer = chosen
        watch = TowerAttention(parts)
        with torch.no_grad():
            model(**batch)
        received.append(watch.received(images))
    assert received[0].any() and torch.equal(*received)


def test_the_tower_of_the_testbed() -> None:
    model, _ = make_model()
    watch = TowerAttention(family(model))
    vision = model.config.vision_config
    with torch.no_grad():
        model.model.vision_tower(torch.rand(1, 3, vision.image_size, vision.image_size))
    count = (vision.image_size // vision.patch_size) ** 2
    received = watch.received(torch.zeros(1, count, dtype=torch.long))
    assert received.shape == (1, count) and (received > 0).all() and received.sum() < 1


def test_without_a_class_token_it_is_the_mean_over_patches() -> None:
    query, key = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    logits = torch.einsum("iqhd,ikhd->ihqk", query.view(2, 5, 2, 4), key.view(2, 5, 2, 4)) / 2
    torch.testing.assert_close(class_attention(query, key, 2, 5), logits.softmax(-1).mean(dim=(1, 2)))


def test_images_that_the_tower_has_not_seen() -> None:
    watch = TowerAttention(family(tiny_llava()))
    with pytest.raises(QuotaError, match="pass pixel_values"):
        watch.received(torch.tensor([[0, -1]]))


def test_a_pruner_watches_only_for_a_scorer_that_asks() -> None:
    model = tiny_llava()
    batch = tiny_batch([tiny_prompt(1, 3, seed=1), tiny_prompt(1, 5, seed=2)])
    changes = {"layers": (-1,), "keep_ratios": (0.5,), "keep": 0.5}
    kept = {}
    for scorer in ("visionzip", "divprune"):
        pruner = Pruner(model, recipe_for(model, scorer=scorer, **changes)).attach()
        with torch.no_grad(), record(model) as trace:
            model(**batch)
        kept[scorer] = trace.kept[-1]
        pruner.detach()
        attention = family(model).tower_blocks[-1].self_attn
        assert not attention.q_proj._forward_hooks
    assert not torch.equal(kept["visionzip"], kept["divprune"])


def test_a_tower_without_projections_of_its_own() -> None:
    parts = family(tiny_llava())
    parts.tower_blocks[parts.model.config.vision_feature_layer].self_attn = torch.nn.Identity()
    with pytest.raises(QuotaError, match="q_proj"):
        TowerAttention(parts)


@pytest.mark.parametrize(
    ("name", "shown", "reason"),
    [
        ("Qwen2VLForConditionalGeneration", "image", "vision_feature_layer"),
        ("InternVLForConditionalGeneration", "image", "patches"),
        ("LlavaNextForConditionalGeneration", "image", "the prompt's images"),
        ("LlavaOnevisionForConditionalGeneration", "video", "patches"),
    ],
)
def test_towers_that_cannot_be_watched(name: str, shown: str, reason: str) -> None:
    tiny = TINY[name]
    model = tiny.build()
    with pytest.raises(QuotaError, match=reason):
        watched = TowerAttention(family(model))
        prompt = tiny.prompt([tiny.sizes[0] if shown == "image" else shown])
        with torch.no_grad():
            model(**tiny.batch([prompt]))
        watched.received(prompt.images[None])
