"""Reading questions, drawing subsets of them, and turning them into what the model takes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import load_image

from quota.errors import QuotaError
from quota.prompts import build_inputs
from quota.samples import Sample, batches, digest, fingerprint, first_of_each_task, read_samples


def write_questions(folder: Path, *lines: str) -> Path:
    Image.new("RGB", (4, 4), "red").save(folder / "red.png")
    (folder / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def line(**keys: object) -> str:
    return json.dumps({"image": "red.png", "question": "What colour?", **keys})


def test_a_folder_and_its_file_read_the_same(tmp_path: Path) -> None:
    write_questions(tmp_path, line(answer="red", task="colour"), "", line())
    samples = read_samples(tmp_path)
    assert samples == read_samples(tmp_path / "questions.jsonl")
    assert samples == [
        Sample(tmp_path / "red.png", "What colour?", "red", "colour"),
        Sample(tmp_path / "red.png", "What colour?", None, None),
    ]
    assert samples[0].pictures()[0].getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        pytest.param("{", "not valid JSON", id="truncated"),
        pytest.param("[1]", "expected an object", id="not an object"),
        pytest.param('{"image": "red.png"}', "'question' is missing", id="no question"),
        pytest.param(line(colour="red"), "unknown key 'colour'", id="unknown key"),
        pytest.param(line(answer=3), "'answer' must be a string, not int", id="number for an answer"),
        pytest.param(line(question="half \ud800"), "'question' holds half a character", id="half a character"),
        pytest.param(line(image="blue.png"), "blue.png does not exist", id="missing image"),
        pytest.param(line(image=["red.png", "blue.png"]), "blue.png does not exist", id="missing second image"),
        pytest.param(line(image=["red.png", 2]), "'image' must be a string or a list", id="number in a list"),
        pytest.param(line(image=[]), "'image' must be a string or a list of strings, not list", id="no images"),
        pytest.param(line(video="red.png"), "leave out 'image' or 'video'", id="image and video"),
        pytest.param('{"video": "a.gif", "question": "what"}', "the video", id="missing video"),
        pytest.param('{"question": "what"}', "'image' is missing (or 'video')", id="no image"),
    ],
)
def test_a_bad_line_is_named_in_one_line(tmp_path: Path, bad: str, says: str) -> None:
    write_questions(tmp_path, line(), bad)
    with pytest.raises(QuotaError) as raised:
        read_samples(tmp_path)
    message = str(raised.value)
    assert says in message and "line 2" in message and "questions.jsonl" in message
    assert "\n" not in message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(QuotaError, match="does not exist"):
        read_samples(tmp_path / "nothing.jsonl")
    with pytest.raises(QuotaError, match="holds no questions"):
        read_samples(write_questions(tmp_path))
    (tmp_path / "questions.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(QuotaError, match="cannot read"):
        read_samples(tmp_path)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(QuotaError, match=r"broken\.png"):
        Sample(tmp_path / "broken.png", "What?").pictures()
    with pytest.raises(QuotaError, match=r"broken\.png.*GIF, or as a folder of frames"):
        Sample(tmp_path / "broken.png", "What?", video=True).pictures()


def test_fingerprint_is_of_what_the_model_sees(tmp_path: Path) -> None:
    write_questions(tmp_path, line(answer="red"))
    [stored] = read_samples(tmp_path)
    in_memory = Sample(Image.new("RGB", (4, 4), "red"), "What colour?", "red")
    assert fingerprint([stored]) == fingerprint([in_memory])
    others = [
        Sample(Image.new("RGB", (4, 4), "blue"), "What colour?", "red"),
        Sample(in_memory.image, "What colour ?", "red"),
        Sample(in_memory.image, "What colour?", "blue"),
        Sample(in_memory.image, "What colour?", "red", "colour"),
    ]
    assert len({fingerprint([sample]) for sample in [in_memory, *others]}) == 5
    # Of the set, whatever its order; and a question asked twice is another set.
    assert fingerprint([in_memory, others[0]]) == fingerprint([others[0], in_memory])
    assert fingerprint([in_memory, in_memory]) != fingerprint([in_memory])


CLIP = [Image.new("RGB", (6, 4), colour) for colour in ("red", "green", "blue")]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A folder with one video in all its forms."""
    (tmp_path / "frames").mkdir()
    for number, frame in enumerate(CLIP):
        frame.save(tmp_path / "frames" / f"{number}.png")
    (tmp_path / "frames" / ".hidden").write_text("not a frame")
    (tmp_path / "empty").mkdir()
    CLIP[0].save(tmp_path / "clip.gif", save_all=True, append_images=CLIP[1:])
    lines = [
        {"video": "clip.gif"},
        {"video": "frames"},
        {"video": [f"frames/{number}.png" for number in range(3)]},
        {"image": [f"frames/{number}.png" for number in range(3)]},
        {"image": "clip.gif"},
    ]
    text = "".join(json.dumps({**one, "question": "what"}) + "\n" for one in lines)
    (tmp_path / "questions.jsonl").write_text(text)
    return tmp_path


def test_several_images_and_videos_are_read(clip: Path) -> None:
    animated, folder, frames, images, first = read_samples(clip)
    for sample in (animated, folder, frames):
        assert sample.video
        assert [picture.getpixel((0, 0)) for picture in sample.pictures()] == [each.getpixel((0, 0)) for each in CLIP]
    assert not images.video and len(images.pictures()) == 3
    assert first.pictures()[0].getpixel((0, 0)) == (255, 0, 0) and len(first.pictures()) == 1
    assert fingerprint([folder]) == fingerprint([frames]) == fingerprint([Sample(tuple(CLIP), "what", video=True)])
    assert len({fingerprint([sample]) for sample in (folder, images, first, Sample(CLIP[0], "why"))}) == 4
    with pytest.raises(QuotaError, match="empty folder"):
        Sample(clip / "empty", "what", video=True).pictures()


def test_the_digest_of_single_pictures_stays_what_it_was() -> None:
    sample = Sample(Image.new("RGB", (4, 3), "red"), "What colour?", "red", "colour")
    written = b'["What colour?", "red", "colour", [4, 3]]' + bytes((255, 0, 0)) * 12
    assert digest(sample) == hashlib.sha256(written).hexdigest()


@given(st.lists(st.booleans()), st.integers(min_value=1, max_value=4))
def test_batches_keep_order_and_videos_alone(videos: list[bool], size: int) -> None:
    samples = [Sample(CLIP[0], str(number), video=video) for number, video in enumerate(videos)]
    made = batches(samples, size)
    assert [sample for batch in made for sample in batch] == samples
    assert all(len(batch) == 1 or (len(batch) <= size and not any(one.video for one in batch)) for batch in made)
    if not any(videos):
        assert made == [samples[start : start + size] for start in range(0, len(samples), size)]


@given(st.lists(st.sampled_from(["a", "b", None])), st.integers(min_value=1, max_value=4))
def test_first_of_each_task_keeps_order_and_loses_no_task(tasks: list[str | None], count: int) -> None:
    picture = Image.new("RGB", (1, 1))
    samples = [Sample(picture, str(number), task=task) for number, task in enumerate(tasks)]
    chosen = first_of_each_task(samples, count)
    assert chosen == sorted(chosen, key=lambda sample: int(sample.question))
    for task in set(tasks):
        expected = [sample for sample in samples if sample.task == task][:count]
        assert [sample for sample in chosen if sample.task == task] == expected


def test_first_of_each_task_needs_a_count() -> None:
    with pytest.raises(QuotaError, match="at least 1"):
        first_of_each_task([], 0)


def test_inputs_are_padded_on_the_left_and_hold_all_image_tokens(tiny_processor) -> None:
    picture = Image.new("RGB", (50, 30), "green")
    samples = [Sample(picture, "what is this"), Sample(picture, "how many cats are in the picture")]
    inputs = build_inputs(tiny_processor, samples)
    mask, tokens = inputs["attention_mask"], inputs["input_ids"]
    assert mask[0, 0] == 0 and mask[0, -1] == 1 and mask[1].all()
    image_tokens = (tokens == tiny_processor.image_token_id).sum(dim=1)
    assert image_tokens.tolist() == [16, 16]
    assert inputs["pixel_values"].shape == (2, 3, 32, 32)


def test_a_question_that_is_no_text_is_refused(tiny_processor) -> None:
    with pytest.raises(QuotaError, match="holds half a character"):
        build_inputs(tiny_processor, [Sample(Image.new("RGB", (32, 32)), "half \udcff")])


def test_a_processor_without_a_chat_template_is_refused(tiny_processor) -> None:
    tiny_processor.chat_template = None
    with pytest.raises(QuotaError, match="chat template"):
        build_inputs(tiny_processor, [Sample(Image.new("RGB", (8, 8)), "what")])


class TestHostilePictures:
    """What Pillow would run, wait for, or spend a minute on."""

    def refused(self, file: Path, says: str) -> None:
        with pytest.raises(QuotaError, match=says) as raised:
            Sample(file, "What?").pictures()
        assert len(str(raised.value)) <= 300 and "\n" not in str(raised.value)

    @pytest.mark.filterwarnings("ignore:Image size")
    def test_more_pixels_than_anybody_needs(self, tmp_path: Path) -> None:
        # A megabit of zeros: 400 megapixels in a few kilobytes.
        Image.new("1", (13_000, 7000)).save(tmp_path / "large.png")
        Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
        self.refused(tmp_path / "large.png", "91,000,000 pixels, at most 89,478,485")
        self.refused(tmp_path / "bomb.png", "bomb.png")

    @pytest.mark.parametrize("text", [b"P6\n" + b"9" * 5000, b"P6 x y 255\n", b"P3 2 2 255\n1 2 x", b"P6 -1 2 255\n"])
    def test_a_broken_ppm(self, text: bytes, tmp_path: Path) -> None:
        (tmp_path / "broken.ppm").write_bytes(text)
        self.refused(tmp_path / "broken.ppm", "cannot read the image")

    def test_a_format_that_another_program_would_draw(self, tmp_path: Path) -> None:
        (tmp_path / "drawn.eps").write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
        )
        self.refused(tmp_path / "drawn.eps", "cannot identify")

    @pytest.mark.parametrize("name", ["x" * 300, "zero\0byte"])
    def test_a_name_that_no_file_can_have(self, name: str, tmp_path: Path) -> None:
        self.refused(tmp_path / name, "cannot read")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        pytest.param("[" * 100_000, "nested too deeply", id="deep"),
        pytest.param('{"image": ' + "1" * 5000 + "}", "thousands of digits", id="a long number"),
        pytest.param(line(image="x" * 300), "does not exist", id="a long name"),
        pytest.param(line(**{"k" * 5000: "v"}), "unknown key", id="a long key"),
    ],
)
def test_lines_that_python_cannot_take(tmp_path: Path, bad: str, says: str) -> None:
    write_questions(tmp_path, bad)
    with pytest.raises(QuotaError, match=says) as raised:
        read_samples(tmp_path)
    assert len(str(raised.value)) <= 300


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{% for", "{{ messages.x.y }}"])
def test_a_broken_template_is_one_line(template: str, tiny_processor) -> None:
    tiny_processor.chat_template = template
    with pytest.raises(QuotaError, match=r"processor fails .*look at its chat template"):
        build_inputs(tiny_processor, [Sample(Image.new("RGB", (8, 8)), "what")])


def test_pictures_are_the_way_up_that_their_files_say(tmp_path: Path) -> None:
    picture = Image.linear_gradient("L").resize((40, 20)).convert("RGB")
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "phone.png", exif=exif)
    [found] = Sample(tmp_path / "phone.png", "").pictures()
    assert found.tobytes() == load_image(str(tmp_path / "phone.png")).tobytes()
    assert found.size == (20, 40)


def test_the_pictures_of_a_question_have_a_limit_together(tmp_path: Path) -> None:
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
    assert len(Sample((tmp_path / "large.png",) * 2, "").pictures()) == 2
    with pytest.raises(QuotaError, match=r"'Which\?' have more than 357,913,940 pixels together"):
        Sample((tmp_path / "large.png",) * 5, "Which?").pictures()


def test_lines_end_where_json_says(tmp_path: Path) -> None:
    """Unicode has other ends of lines, which a string may hold; and some editors put a mark in front of the file."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    line = json.dumps({"image": "a.png", "question": "one\u2028two"}, ensure_ascii=False)
    (tmp_path / "questions.jsonl").write_text(f"\ufeff{line}\r\n{line}\n", encoding="utf-8")
    assert [sample.question for sample in read_samples(tmp_path)] == ["one\u2028two"] * 2
