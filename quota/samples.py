"""Questions about pictures: the one form in which calibration and evaluation data come.

On disk a set is a folder with `questions.jsonl` and its images, or any `.jsonl` file with images beside it. One
line is one question, and only these keys exist:

    {"image": "images/0001.png", "question": "What colour is the cat?", "answer": "black", "task": "attributes"}

`image` is relative to the file; `answer` and `task` may be left out (calibration needs neither).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from quota.errors import QuotaError
from quota.files import check_file, parse_json, read_bytes

QUESTIONS_FILE = "questions.jsonl"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Of pictures that are read. Pillow knows more, some by other programs (EPS)."""
LARGEST_PICTURE = 89_478_485
"""Pixels, 268 MB in memory: from where Pillow warns. Processors make pictures a hundredth of that anyway."""
_REQUIRED = ("image", "question")
_OPTIONAL = ("answer", "task")


@dataclass(frozen=True)
class Sample:
    """One question about one picture.

    `image` is a picture, or the path of one that is read when it is needed: a large set stays small in memory.
    """

    image: Image.Image | Path
    question: str
    answer: str | None = None
    task: str | None = None

    def picture(self) -> Image.Image:
        """The picture in RGB. Raises QuotaError if the file cannot be read as an image."""
        if isinstance(self.image, Image.Image):
            return self.image.convert("RGB")
        check_file(self.image)
        try:
            with Image.open(self.image, formats=FORMATS) as file:
                pixels = file.width * file.height
                if pixels <= LARGEST_PICTURE:
                    return file.convert("RGB")
        except Exception as error:
            # Decoders raise whatever a broken file leads to.
            raise QuotaError(f"cannot read the image {self.image}: {error}; save it again as PNG or JPEG") from error
        raise QuotaError(f"{self.image} has {pixels:,} pixels, at most {LARGEST_PICTURE:,} are read; make it smaller")


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
        lines = read_bytes(file).decode("utf-8").splitlines()
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


def _parse(line: str, folder: Path, place: str) -> Sample:
    try:
        entry = parse_json(line)
    except ValueError as error:
        raise QuotaError(f"{place}: {error}") from error
    if not isinstance(entry, dict):
        raise QuotaError(f"{place}: expected an object with the keys image and question")
    for key in entry:
        if key not in _REQUIRED + _OPTIONAL:
            raise QuotaError(f"{place}: unknown key {key!r}; known are {', '.join(_REQUIRED + _OPTIONAL)}")
    for key in _REQUIRED:
        if key not in entry:
            raise QuotaError(f"{place}: the key {key!r} is missing")
    for key, value in entry.items():
        if not isinstance(value, str):
            raise QuotaError(f"{place}: {key!r} must be a string, not {type(value).__name__}")
        if not is_text(value):
            raise QuotaError(f"{place}: {key!r} holds half a character (a lone surrogate); write it as UTF-8")
    image = folder / entry["image"]
    try:
        there = image.is_file()
    except OSError:
        # A name that no file can have.
        there = False
    if not there:
        raise QuotaError(f"{place}: the image {image} does not exist")
    return Sample(image, entry["question"], entry.get("answer"), entry.get("task"))


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


def digest(sample: Sample) -> str:
    """SHA-256, in hex, of a question, its answer and task, and the decoded pixels.

    A picture in memory and the lossless file it was saved to have one digest.
    """
    picture = sample.picture()
    text = json.dumps([sample.question, sample.answer, sample.task, picture.size])
    return hashlib.sha256(text.encode() + picture.tobytes()).hexdigest()


def in_order(samples: Sequence[Sample]) -> tuple[list[Sample], str]:
    """The samples in the order of their digests, and the SHA-256 of all of these: the same however they were given."""
    sorted_pairs = sorted(((digest(sample), sample) for sample in samples), key=lambda pair: pair[0])
    together = hashlib.sha256("".join(found for found, _ in sorted_pairs).encode())
    return [sample for _, sample in sorted_pairs], together.hexdigest()


def fingerprint(samples: Sequence[Sample]) -> str:
    """SHA-256, in hex, of a set of samples, whatever their order."""
    return in_order(samples)[1]
