"""Train projector and adapter on a folder of photographs: on two cores in hours, on a GPU in minutes.

- First the projector alone, on what patches show (`losses.py`): the decoder then finds words it knows.
- Then projector and low-rank additions of the decoder (`low_rank.py`) on answers, with some fifteen questions a
  picture in one pass (`lessons.py`), and few photographs in a picture at first.
- Muon on matrices, AdamW on the rest; the learning rates fall over the last part of the run.

The run is seeded, writes a checkpoint every few minutes and resumes from it exactly. One line of JSON every LOG steps
goes to the log: losses, and by task the share of answers that are right when all tokens before are given.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from quota.errors import QuotaError
from quota_lab.reference.state import load_state, save_state
from quota_lab.testbeds.vlm.lessons import Batch, Curriculum, Lessons
from quota_lab.testbeds.vlm.losses import WEIGHTS
from quota_lab.testbeds.vlm.muon import Muon
from quota_lab.testbeds.vlm.network import Network
from quota_lab.testbeds.vlm.parts import load_parts
from quota_lab.testbeds.vlm.photos import Photos

LOG = 10
Shares = dict[str, float]


@dataclass(frozen=True)
class Plan:
    """How long and how fast. The first `patch_steps` train the projector alone, on what patches show."""

    steps: int = 2500
    patch_steps: int = 500
    patch_batch: int = 16
    batch: int = 16
    rank: int = 22
    projector: float = 0.02
    adapter: float = 0.003
    adamw: float = 2e-3
    warmup: int = 30
    decay: float = 0.4  # the share of the run over which learning rates fall
    seen: float = 0.3  # where the projector's learning rate stands in the second stage
    growth: tuple[int, int] = (400, 1500)  # steps that read after which a batch is half, and all, of `batch`
    checkpoint: int = 10
    development: int = 100  # steps between two looks at photographs that nothing is trained on
    seed: int = 0

    def scale(self, step: int) -> tuple[float, float]:
        """Learning rates of projector and adapter, relative to their peaks."""
        if step < self.patch_steps:
            left = max(self.seen, 2 * (self.patch_steps - step) / self.patch_steps)
            return min(1.0, (step + 1) / self.warmup, left), 0.0
        left = (self.steps - step) / (self.decay * (self.steps - self.patch_steps))
        scale = min(1.0, (step - self.patch_steps + 1) / self.warmup, left)
        return self.seen * min(1.0, left), scale

    def curriculum(self, step: int) -> Curriculum:
        """In the first 200 steps that read three photographs at most, four in as many more, then six.

        The batch grows: at first many small steps lead on, later less noise does.
        """
        half, whole = self.growth
        read = step - self.patch_steps
        if read < 0:
            return Curriculum(batch=self.patch_batch)
        quarters = 1 if read < half else 2 if read < whole else 4
        return Curriculum(most=3 if read < 200 else 4 if read < 400 else 6, batch=max(1, self.batch * quarters // 4))


# A GPU has as soon done a whole batch as a quarter of one.
ON_GPU = Plan(
    steps=3000, patch_steps=300, patch_batch=64, batch=64, growth=(0, 0), adapter=0.005, checkpoint=500, development=250
)


def optimizers(network: Network, plan: Plan) -> list[torch.optim.Optimizer]:
    """One each: the projector's matrices, the adapter's, everything else."""
    projector = [network.projector.linear_1.weight, network.projector.linear_2.weight]
    adapter = list(network.trained["adapter"].parameters())
    known = {id(parameter) for parameter in (*projector, *adapter)}
    rest = [p for p in network.trained.parameters() if p.requires_grad and id(p) not in known]
    rest_by = torch.optim.AdamW(rest, lr=plan.adamw, weight_decay=0.0, betas=(0.9, 0.98))
    return [Muon(projector, lr=plan.projector), Muon(adapter, lr=plan.adapter), rest_by]


def train(photographs: Path, state: Path, plan: Plan, device: str = "cpu") -> Network:
    """Train on a folder of photographs; `state` is the checkpoint, and STATE.log.jsonl the log of the run.

    QuotaError without the parts, photographs, or GPU that it takes.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise QuotaError("torch sees no GPU here; train with --device cpu")
    torch.manual_seed(plan.seed)
    model, tokenizer = load_parts()
    network = Network(model, tokenizer, plan.rank, device)
    lessons = Lessons(tokenizer, Photos(photographs, "train"), plan.seed, plan.curriculum)
    unseen = Lessons(tokenizer, Photos(photographs, "development"), plan.seed + 1)
    run(network, lessons, unseen, state, plan, compile_layers=True)
    return network


def restore(state: Path, plan: Plan | None = None) -> Network:
    """The network of a checkpoint. QuotaError where there is none."""
    model, tokenizer = load_parts()
    network = Network(model, tokenizer, (plan or Plan()).rank)
    if load_state(state, network.trained, []) == 0:
        raise QuotaError(f"{state} holds no checkpoint; train it with `quota testbed vlm train`")
    return network


def run(
    network: Network, lessons: Lessons, unseen: Lessons, state: Path, plan: Plan, compile_layers: bool = False
) -> None:
    """All steps that are left."""
    groups = optimizers(network, plan)
    start = load_state(state, network.trained, groups)
    if start == 0:
        network.projector.standardise(network.see(lessons[0].pixels.to(network.device)))
    if compile_layers:
        network.compile()
    state.parent.mkdir(parents=True, exist_ok=True)
    record = Record(state.with_name(state.name + ".log.jsonl"), plan)
    # A GPU is faster than a core that draws: then every core does.
    workers = 0 if network.device.type == "cpu" else os.cpu_count() or 1
    drawn = DataLoader(lessons, batch_size=None, sampler=range(start, plan.steps), num_workers=workers)
    for step, batch in zip(range(start, plan.steps), drawn, strict=True):
        record.add(step, *_step(network, groups, batch.to(network.device), step, plan))
        if (step + 1) % plan.checkpoint == 0 or step + 1 == plan.steps:
            save_state(state, network.trained, groups, step + 1)
        if (step + 1) % plan.development == 0 and step >= plan.patch_steps:
            record.write({"step": step + 1, "development": develop(network, unseen, 4)})


def _step(
    network: Network, groups: list[torch.optim.Optimizer], batch: Batch, step: int, plan: Plan
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    sees, reads = plan.scale(step)
    for group, rate in zip(
        groups, (plan.projector * sees, plan.adapter * reads, plan.adamw * max(sees, reads)), strict=True
    ):
        group.param_groups[0]["lr"] = rate
    visual = network.project(network.see(batch.pixels))
    losses, right = network.look(visual, batch)
    if step >= plan.patch_steps:
        more, told = network.read(visual, batch)
        losses, right = losses | more, right | told
    torch.stack([WEIGHTS[name] * value for name, value in losses.items()]).sum().backward()
    for group in groups:
        parameters = [p for p in group.param_groups[0]["params"] if p.grad is not None]
        if not parameters:
            continue  # the adapter, while the projector is trained alone
        nn.utils.clip_grad_norm_(parameters, 1.0)
        group.step()
        group.zero_grad(set_to_none=True)
    return losses, right


@torch.no_grad()
def develop(network: Network, unseen: Lessons, batches: int) -> Shares:
    """Shares that are right on pictures of photographs that nothing is trained on."""
    sums: dict[str, list[float]] = defaultdict(list)
    for number in range(batches):
        batch = unseen[number].to(network.device)
        visual = network.project(network.see(batch.pixels))
        for name, share in (network.look(visual, batch)[1] | network.read(visual, batch)[1]).items():
            sums[name].append(float(share))
    return {name: round(sum(shares) / len(shares), 3) for name, shares in sums.items()}


class Record:
    """The log: means over LOG steps, one line of JSON each."""

    def __init__(self, file: Path, plan: Plan) -> None:
        self.file, self.plan, self.began = file, plan, time.monotonic()
        self.losses: dict[str, list[Tensor]] = defaultdict(list)
        self.right: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, step: int, losses: dict[str, Tensor], right: dict[str, Tensor]) -> None:
        for kept, values in ((self.losses, losses), (self.right, right)):
            for name, value in values.items():
                kept[name].append(value.detach())
        if (step + 1) % LOG:
            return
        means = [{name: _mean(values) for name, values in kept.items()} for kept in (self.losses, self.right)]
        seconds = round(time.monotonic() - self.began, 1)
        pictures = sum(self.plan.curriculum(done).batch for done in range(step + 1))
        self.write({"step": step + 1, "pictures": pictures, "seconds": seconds, "loss": means[0], "right": means[1]})
        self.losses.clear()
        self.right.clear()

    def write(self, line: dict[str, object]) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _mean(values: list[Tensor]) -> float:
    return round(float(torch.stack(values).float().nanmean()), 4)
