"""The model as it is trained and the stock model that is built of it are one model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.tiny_testbed import LAYER, RANK, make_model, make_network, make_tokenizer
from torch import nn
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model

from quota.errors import QuotaError
from quota_lab.testbeds.vlm import weights
from quota_lab.testbeds.vlm.architecture import assemble, build_processor, resize_positions
from quota_lab.testbeds.vlm.attention import written_out
from quota_lab.testbeds.vlm.lessons import IGNORE, VISUAL, Batch, Curriculum, Lessons
from quota_lab.testbeds.vlm.losses import answers
from quota_lab.testbeds.vlm.low_rank import LowRank
from quota_lab.testbeds.vlm.photos import Photos
from quota_lab.testbeds.vlm.pictures import Scene
from quota_lab.testbeds.vlm.projector import Projector
from quota_lab.testbeds.vlm.questions import TASKS, Question


def lesson(photos: Photos) -> Batch:
    return Lessons(make_tokenizer(), photos, 0, lambda _: Curriculum(batch=2))[0]


class TestArchitecture:
    def test_the_tower_sees_what_it_saw(self) -> None:
        torch.manual_seed(0)
        tower = Dinov2Model(
            Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=70)
        ).eval()
        pixels = torch.randn(1, 3, 224, 224)
        resized = resize_positions(tower.embeddings.position_embeddings, 16)
        expected = tower.embeddings(pixels)
        tower.embeddings.position_embeddings = nn.Parameter(resized)
        assert torch.allclose(tower.embeddings(pixels), expected, atol=1e-5)

    def test_a_part_with_other_names_is_refused(self) -> None:
        model, tokenizer = make_model()
        decoder = SimpleNamespace(config=model.config.text_config, model=model.model.language_model)
        tower = model.model.vision_tower
        with pytest.raises(RuntimeError, match="Missing key"):
            incomplete = {name: tensor for name, tensor in tower.state_dict().items() if "q_proj" not in name}
            assemble(SimpleNamespace(config=tower.config, state_dict=lambda: incomplete), decoder, tokenizer, LAYER)

    def test_the_vocabulary_keeps_its_size(self) -> None:
        tokenizer = make_tokenizer()
        assert tokenizer.convert_tokens_to_ids("<image>") == 3 and "<empty_output>" not in tokenizer.get_vocab()
        assert tokenizer.encode("<image>") == [3]


class TestLessons:
    def test_a_turn_is_what_the_processor_writes(self, photos: Photos) -> None:
        """Front, question and answer, without the line break behind the end."""
        tokenizer = make_tokenizer()
        lessons = Lessons(tokenizer, photos, 0)
        rows, _ = lessons.pack([Question("reading", "What does the sign say?", "stop")], Scene())
        ids, targets, positions, turns, tasks = rows
        length = int((turns != -2).sum())
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What does the sign say?"}]}
        told = {"role": "assistant", "content": [{"type": "text", "text": "stop"}]}
        processor = build_processor(tokenizer)
        image = torch.zeros(3, 224, 224, dtype=torch.uint8)
        whole = processor(images=[[image]], text=[processor.apply_chat_template([user, told])])["input_ids"][0]
        asked = processor(images=[[image]], text=[processor.apply_chat_template([user], add_generation_prompt=True)])
        assert tokenizer.decode(whole[length:]) == "\n" and ids[:length].tolist() == list(whole[:length])
        answer = list(whole[len(asked["input_ids"][0]) : length])
        assert targets[targets != IGNORE].tolist() == answer
        assert (targets[length - len(answer) - 1 : length - 1] == answer).all()
        assert positions[:length].tolist() == list(range(length))
        assert set(tasks[turns == 0]) == {TASKS.index("reading")}

    def test_a_seed_and_a_number_are_a_batch(self, photos: Photos) -> None:
        one, other = lesson(photos), lesson(photos)
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("pixels", "ids", "labels"))

    def test_a_turn_sees_the_picture_and_itself(self, photos: Photos) -> None:
        batch = lesson(photos)
        mask = batch.mask()[0, 0]
        turns = batch.turns[0]
        for query in (0, 100, 270, 300, 350):
            seen = [key for key in range(query + 1) if turns[key] in (-1, turns[query])]
            assert mask[query].nonzero().flatten().tolist() == seen
        assert (turns == -1).sum() == len(turns) - 320

    def test_nouns_find_what_they_name(self, photos: Photos) -> None:
        batch = lesson(photos)
        assert set(batch.grounds[:, 0].unique().tolist()) == {-1, 0, 1}
        absent = batch.grounds[:, 0] == 0
        assert (batch.grounds[:, 1:].transpose(1, 2)[absent] == -1).all()


class TestNetwork:
    def test_built_it_says_the_same(self, photos: Photos) -> None:
        network, _ = make_network()
        batch = lesson(photos)
        network.projector.standardise(network.see(batch.pixels))
        with torch.no_grad():
            for part in network.adapters.values():
                part.up.normal_(std=0.1)
            visual = network.project(network.see(batch.pixels))
            text = network.decoder.embed_tokens(batch.ids)
            first = int((batch.turns[0] == -1).sum()) - VISUAL
            hidden = torch.cat((text[:, :first], visual.bfloat16(), text[:, first + VISUAL :]), 1)
            _, last = network.decode(hidden, batch)
            expected = last @ network.decoder.embed_tokens.weight.T
        model, _ = make_model()
        weights.apply(model, weights.trained(network))
        length = int((batch.turns[0] <= 0).sum() - (batch.turns[0] == -2).sum())
        pixels = ((batch.pixels[:1].float() / 255 - torch.tensor((0.485, 0.456, 0.406)))
                  / torch.tensor((0.229, 0.224, 0.225))).permute(0, 3, 1, 2)  # fmt: skip
        with torch.no_grad():
            found = model(input_ids=batch.ids[:1, :length], pixel_values=pixels).logits[0]
        error = (found[VISUAL:] - expected[0, VISUAL:length].float()).norm() / found[VISUAL:].norm()
        assert error < 0.03

    def test_projector_folds(self) -> None:
        torch.manual_seed(0)
        projector, features = Projector(32, 64), 3 + 10 * torch.randn(5, 7, 32)
        projector.standardise(features)
        folded = projector.folded()
        hidden = F.gelu(F.linear(features, folded["linear_1.weight"], folded["linear_1.bias"]))
        found = F.linear(hidden, folded["linear_2.weight"], folded["linear_2.bias"])
        assert torch.allclose(found, projector(features), atol=1e-4)

    def test_a_low_rank_addition_is_its_merged_layer(self) -> None:
        torch.manual_seed(0)
        linear = nn.Linear(48, 32, bias=False)
        adapted, x = LowRank(linear, RANK), torch.randn(6, 48)
        nn.init.normal_(adapted.up)
        found, expected = adapted(x).float(), F.linear(x, linear.weight + adapted.up @ adapted.down)
        assert ((found - expected).norm() / expected.norm()) < 0.02

    def test_attention_written_out(self) -> None:
        torch.manual_seed(0)
        query, key, value = (torch.randn(2, heads, 9, 16) for heads in (4, 2, 2))
        mask = torch.where(torch.ones(9, 9, dtype=torch.bool).tril(), 0.0, -1e9)[None, None].expand(2, 1, 9, 9)
        found, _ = written_out(None, query, key, value, mask, 0.25)
        expected = F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True, scale=0.25)
        assert torch.allclose(found, expected.transpose(1, 2), atol=1e-5)

    def test_an_answer_is_right_when_all_its_tokens_are(self) -> None:
        targets = torch.tensor([[IGNORE, 5, 6, IGNORE, 7, 6]])
        turns, tasks = torch.tensor([[-1, 0, 0, 1, 1, 1]]), torch.tensor([[-1, 2, 2, 0, 0, 0]])
        logits = F.one_hot(torch.tensor([5, 4, 7, 6]), 8).float()
        _, right = answers(logits, targets, turns, tasks)
        assert right[TASKS[2]] == 0 and right[TASKS[0]] == 1


class TestWeights:
    def test_written_and_read(self, tmp_path: Path) -> None:
        tensors = weights.trained(make_network()[0])
        weights.write(tensors, tmp_path / "adapter.safetensors")
        again = weights.read(tmp_path / "adapter.safetensors")
        assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())

    def test_too_large(self, tmp_path: Path) -> None:
        with pytest.raises(QuotaError, match="smaller rank"):
            weights.write({"x": torch.zeros(3000, 3000, dtype=torch.bfloat16)}, tmp_path / "adapter.safetensors")

    def test_none_there(self, tmp_path: Path) -> None:
        with pytest.raises(QuotaError, match="testbed vlm train"):
            weights.read(tmp_path / "adapter.safetensors")

    def test_of_another_model(self) -> None:
        with pytest.raises(QuotaError, match="another model"):
            weights.apply(make_model()[0], {"tower.weight": torch.zeros(1)})
