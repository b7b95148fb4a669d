"""Halves of a suite."""

from __future__ import annotations

from collections import Counter

from PIL import Image

from quota.samples import Sample, read_samples
from quota_lab import reference
from quota_lab.study.halves import half


def test_alternate_pictures_whatever_order_their_questions_have() -> None:
    one, two, three = (Image.new("RGB", (2, 2)) for _ in range(3))
    samples = [Sample(picture, str(number)) for number, picture in enumerate([one, one, two, three, two])]
    assert [sample.question for sample in half(samples, "development")] == ["0", "1", "3"]
    assert [sample.question for sample in half(samples, "reported")] == ["2", "4"]
    assert half(samples, "all") == samples


def test_of_the_reference_suite_share_no_picture_and_ask_every_task() -> None:
    samples = read_samples(reference.suite_path())
    development, reported = half(samples, "development"), half(samples, "reported")
    assert len(development) + len(reported) == len(samples)
    assert not {sample.image for sample in development} & {sample.image for sample in reported}
    for part in (development, reported):
        assert all(450 < count < 550 for count in Counter(sample.task for sample in part).values())
