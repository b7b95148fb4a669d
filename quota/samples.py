"""Questions about pictures: the one form in which calibration and evaluation data come.

On disk a set is a folder with `questions.jsonl` and its images, or any `.jsonl` file with images beside it. One
line is one question, and only these keys exist:

    {"image": "images/0001.png", "question": "What colour is the cat?", "answer": "black", "task": "attributes"}
    {"image": ["images/a.png", "images/b.png"], "question": "Which of them shows a dog?"}
    {"video": "clips/1.gif", "question": "Does the ball fall?"}

Paths are relative to the file; `answer` and `task` may be left out (calibration needs neither). A video is an animated
picture (GIF, WebP, PNG), a folder of frames in the order of their names, or a list of frames. Every frame is shown.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps, ImageSequence

from quota.errors import QuotaError
from quota.files import check_file, parse_json, read_bytes

QUESTIONS_FILE = "questions.jsonl"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Of pictures that are read. Pillow knows more, some by other programs (EPS)."""
LARGEST_PICTURE = 89_478_485
"""Pixels, 268 MB in memory: from where Pillow warns. Processors make pictures a hundredth of that anyway.

All frames of an animated picture count."""
LARGEST_QUESTION = 4 * LARGEST_PICTURE
"""Pixels of all pictures of a question, a gigabyte in memory."""
_PICTURES = ("image", "video")
_TEXTS = ("question", "answer", "task")


@dataclass(frozen=True)
class Sample:
    """One question about a picture, several pictures, or a video.

    `image` is a picture, or the path of one that is read when it is needed: a large set stays small in memory. Of a
    video it may also be an animated picture, or a folder of frames. Several are a tuple.
    """

    image: Image.Image | Path | tuple[Image.Image | Path, ...]
    question: str
    answer: str | None = None
    task: str | None = None
    video: bool = False
    """Whether the pictures are the frames of one video."""

    def pictures(self) -> list[Image.Image]:
        """The pictures, or all frames of the video, in RGB, the way up that their files say.

        Raises QuotaError for a file that is none, and for more pixels than `LARGEST_QUESTION`.
        """
        given, read, pixels = self.image if isinstance(self.image, tuple) else (self.image,), [], 0
        for one in given:
            more = _read(one, self.video)
            pixels += sum(picture.width * picture.height for picture in more)
            if pixels > LARGEST_QUESTION:
                raise QuotaError(
                    f"the pictures of the question {self.question[:40]!r} have more than {LARGEST_QUESTION:,} pixels "
                    "together; make them smaller, or fewer"
                )
            read += more
        return read


def read_samples(path: str | Path) -> list[Sample]:
    """Read a folder with `questions.jsonl`, or a `.jsonl` file, in the order of its lines.

    Raises QuotaError, naming the file and the line, for a line that is not such an object, a key that is missing
    or unknown, an image that is not there, and a file without a single question.
    """
    path = Path(path)
    file = path / QUESTIONS_FILE if path.is_dir() else path
    try:
        there = file.exists()
    except (OSError, ValueError):
        there = False
    if not there:
        raise QuotaError(f"{file} does not exist; give a .jsonl file or a folder with {QUESTIONS_FILE}")
    try:
        # With or without a mark in front. Not splitlines: JSON may hold other characters that end a line for Unicode.
        lines = read_bytes(file).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise QuotaError(f"cannot read {file}: {error}; write it as UTF-8") from error
    samples = [
        _parse(line, file.parent, f"{file}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not samples:
        raise QuotaError(f"{file} holds no questions; write one JSON object a line")
    return samples


def _read(image: Image.Image | Path, video: bool) -> list[Image.Image]:
    """One picture; of a video all that it holds."""
    if isinstance(image, Image.Image):
        frames = ImageSequence.Iterator(image) if video else [image]
        return [ImageOps.exif_transpose(frame).convert("RGB") for frame in frames]
    if video and _is_there(image, folder_too=True) and image.is_dir():
        files = sorted(file for file in image.glob("*") if file.is_file() and not file.name.startswith("."))
        if not files:
            raise QuotaError(f"the video {image} is an empty folder; put its frames there")
        return [frame for file in files for frame in _read(file, video=False)]
    check_file(image)
    return _decode(image, str(image), video, LARGEST_PICTURE)


def picture_in(data: bytes, name: str, largest: int = LARGEST_PICTURE, left: int | None = None) -> Image.Image:
    """The picture, in RGB, that `data` is the file of. QuotaError, by its `name`, if it is none or has more pixels.

    `left` are those that pictures before it have left of what all of them may have.
    """
    return _decode(io.BytesIO(data), name, False, largest, left)[0]


def _decode(
    source: Path | io.BytesIO, name: str, video: bool, largest: int, left: int | None = None
) -> list[Image.Image]:
    kind, form = ("video", "GIF, or as a folder of frames") if video else ("image", "PNG or JPEG")
    try:
        with Image.open(source, formats=FORMATS) as file:
            pixels = file.width * file.height * (getattr(file, "n_frames", 1) if video else 1)
            if pixels <= largest and (left is None or pixels <= left):
                return _read(file, video)
    except Exception as error:
        # Decoders raise whatever a broken file leads to.
        raise QuotaError(f"cannot read the {kind} {name}: {error}; save it again as {form}") from error
    if pixels > largest:
        raise QuotaError(f"the {kind} {name} has {pixels:,} pixels, at most {largest:,} are read; make it smaller")
    raise QuotaError(
        f"the {kind} {name} has {pixels:,} pixels, those before it leave {left:,}; send smaller ones, or fewer"
    )


def _parse(line: str, folder: Path, place: str) -> Sample:
    try:
        entry = parse_json(line)
    except ValueError as error:
        raise QuotaError(f"{place}: {error}") from error
    if not isinstance(entry, dict):
        raise QuotaError(f"{place}: expected an object with the keys image and question")
    for key in entry:
        if key not in _PICTURES + _TEXTS:
            raise QuotaError(f"{place}: unknown key {key!r}; known are {', '.join(_PICTURES + _TEXTS)}")
    if "question" not in entry:
        raise QuotaError(f"{place}: the key 'question' is missing")
    if "image" in entry and "video" in entry:
        raise QuotaError(f"{place}: a question is about pictures or about a video; leave out 'image' or 'video'")
    kind = "video" if "video" in entry else "image"
    if kind not in entry:
        raise QuotaError(f"{place}: the key 'image' is missing (or 'video')")
    several = isinstance(entry[kind], list) and len(entry[kind]) > 0
    names = entry[kind] if several else [entry[kind]]
    for key, value in [*((kind, name) for name in names), *((key, entry[key]) for key in _TEXTS if key in entry)]:
        if not isinstance(value, str):
            lists = " or a list of strings" if key in _PICTURES else ""
            raise QuotaError(f"{place}: {key!r} must be a string{lists}, not {type(value).__name__}")
        if not is_text(value):
            raise QuotaError(f"{place}: {key!r} holds half a character (a lone surrogate); write it as UTF-8")
    files = tuple(folder / name for name in names)
    for file in files:
        if not _is_there(file, folder_too=kind == "video" and not several):
            raise QuotaError(f"{place}: the {kind} {file} does not exist")
    image = files if several else files[0]
    return Sample(image, entry["question"], entry.get("answer"), entry.get("task"), video=kind == "video")


def _is_there(file: Path, folder_too: bool) -> bool:
    try:
        return file.is_file() or (folder_too and file.is_dir())
    except OSError:
        # A name that no file can have.
        return False


def is_text(value: str) -> bool:
    """Whether UTF-8 can hold it: bytes of another encoding on a command line, or half of a JSON escape, it cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def first_of_each_task(samples: Sequence[Sample], count: int) -> list[Sample]:
    """The first `count` questions of every task, in their order: the same subset every time, and no task lost."""
    if count < 1:
        raise QuotaError(f"cannot take {count} questions of each task; ask for at least 1")
    taken: dict[str | None, int] = {}
    chosen = []
    for sample in samples:
        if taken.get(sample.task, 0) < count:
            taken[sample.task] = taken.get(sample.task, 0) + 1
            chosen.append(sample)
    return chosen


def batches(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """The samples in their order, at most `size` together, and every video alone.

    Processors do not fill up shorter videos, and some lose pictures that stand beside a video.
    """
    made: list[list[Sample]] = []
    for sample in samples:
        if made and len(made[-1]) < size and not sample.video and not made[-1][0].video:
            made[-1].append(sample)
        else:
            made.append([sample])
    return made


def digest(sample: Sample) -> str:
    """SHA-256, in hex, of a question, its answer and task, and the decoded pixels of its pictures.

    A picture in memory and the lossless file it was saved to have one digest.
    """
    pictures, video = sample.pictures(), ["video"] if sample.video else []
    text = json.dumps([sample.question, sample.answer, sample.task, *(each.size for each in pictures), *video])
    return hashlib.sha256(text.encode() + b"".join(each.tobytes() for each in pictures)).hexdigest()


def in_order(samples: Sequence[Sample]) -> tuple[list[Sample], str]:
    """The samples in the order of their digests, and the SHA-256 of all of these: the same however they were given."""
    sorted_pairs = sorted(((digest(sample), sample) for sample in samples), key=lambda pair: pair[0])
    together = hashlib.sha256("".join(found for found, _ in sorted_pairs).encode())
    return [sample for _, sample in sorted_pairs], together.hexdigest()


def fingerprint(samples: Sequence[Sample]) -> str:
    """SHA-256, in hex, of a set of samples, whatever their order."""
    return in_order(samples)[1]
