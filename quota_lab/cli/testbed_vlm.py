"""`quota testbed vlm`: a vision-language model of real parts, its suite and its training."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

vlm = typer.Typer(
    name="vlm",
    help="A LLaVA of DINOv2-S/14 and SmolLM2-135M-Instruct: build it, write its suite, train it.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Photographs = Annotated[
    Path, typer.Option("--photos", metavar="FOLDER", help="Photographs, a folder of .jpg files for each kind of thing.")
]


class Part(StrEnum):
    """Which photographs of a folder."""

    ALL = "all"
    TRAIN = "train"
    DEVELOPMENT = "development"


class Device(StrEnum):
    """What torch calls a device."""

    CPU = "cpu"
    CUDA = "cuda"


class Dtype(StrEnum):
    """What torch calls a type of numbers."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


@vlm.command()
def build(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new folder of the checkpoint.")],
    adapter: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Another adapter than the one that ships.")
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="Of its weights; float32 for processors without bfloat16's instructions.")
    ] = Dtype.BFLOAT16,
) -> None:
    """Put the model together: tower and decoder from their packages, projector and adapter from here."""
    import torch

    from quota_lab.testbeds.vlm import weights
    from quota_lab.testbeds.vlm.build import build as build_model

    build_model(out, adapter or weights.FILE, getattr(torch, dtype))


@vlm.command()
def suite(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new folder of the suite.")],
    photos: Photographs,
    questions: Annotated[int, typer.Option(min=1, help="Questions of each of the six tasks.")] = 500,
    part: Annotated[
        Part, typer.Option(help="Of a folder that is trained on: what training sees, or what it does not.")
    ] = Part.ALL,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
) -> None:
    """Write questions about pictures of photographs, for `quota eval` and `quota compress`."""
    from quota_lab.testbeds.vlm.photos import Photos
    from quota_lab.testbeds.vlm.suite import write_suite

    write_suite(out, Photos(photos, part), questions, seed)


@vlm.command()
def train(
    state: Annotated[Path, typer.Argument(metavar="STATE", help="The run's checkpoint; an unfinished run goes on.")],
    photos: Photographs,
    device: Annotated[Device, typer.Option(help="Where to train. A GPU takes larger batches.")] = Device.CPU,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps in all.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
) -> None:
    """Train projector and adapter; STATE.log.jsonl tells how it goes. Hours on two cores, minutes on a GPU."""
    from quota_lab.testbeds.vlm.training import ON_GPU, Plan
    from quota_lab.testbeds.vlm.training import train as run

    plan = ON_GPU if device is Device.CUDA else Plan()
    run(photos, state, replace(plan, seed=seed, steps=steps or plan.steps), device)


@vlm.command()
def export(
    state: Annotated[Path, typer.Argument(metavar="STATE", help="A checkpoint of training.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the adapter goes; by default where it ships.")
    ] = None,
) -> None:
    """Write the adapter of a run, finished or not."""
    from quota_lab.testbeds.vlm import weights
    from quota_lab.testbeds.vlm.training import restore

    weights.write(weights.trained(restore(state)), out or weights.FILE)
