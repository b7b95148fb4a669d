"""`quota doctor`: which operator backends run on this machine, why the others do not, and which models are supported.

A backend that says it runs is put to the proof: its integer sums over groups must equal the reference's, on shapes that
are no multiple of anybody's tile.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from quota import ops
from quota.errors import QuotaError
from quota.models import FAMILIES
from quota.models.support import PROMPTS, RUNS, VIDEO, Support
from quota.ops import machine
from quota.ops.interface import InputSpec, LinearSpec, LinearWeight
from quota.ops.packing import pack_int32
from quota.ops.reference import ReferenceBackend
from quota.ops.weights import quantize_weight
from quota.report.tables import WholeTable
from quota.version import versions

_PACKAGES = ("torch", "transformers", "compressed-tensors", "triton")


@dataclass(frozen=True)
class Diagnosis:
    """One backend on this machine."""

    name: str
    why_not: str | None
    """Why it does not run; None if it does."""
    exact: bool | None
    """Whether its integer sums equal the reference's; None if it does not run."""


@dataclass(frozen=True)
class Examination:
    """This machine and its backends."""

    versions: dict[str, str]
    processor: str
    instructions: list[str]
    threads: int
    accelerators: list[str]
    backends: list[Diagnosis]
    forced: str | None
    """The backend that the user asks for, whether it runs or not."""
    families: dict[str, Support]
    """Supported architectures, by the names that transformers gives them."""
    chosen: dict[str, str]
    """Device -> the backend taken there, or why there is none."""

    @property
    def healthy(self) -> bool:
        """Whether every backend that runs is right, and the one asked for (if any) is among them."""
        running = [backend.name for backend in self.backends if backend.why_not is None]
        right = all(backend.exact is not False for backend in self.backends)
        return right and (self.forced is None or self.forced in running)

    def figures(self) -> dict[str, Any]:
        """What `quota doctor --json` writes."""
        return {
            "versions": self.versions,
            "processor": self.processor,
            "instructions": self.instructions,
            "threads": self.threads,
            "accelerators": self.accelerators,
            "backends": [vars(backend) for backend in self.backends],
            "families": [
                {
                    "architecture": name,
                    "title": family.title,
                    "prompts": family.prompts,
                    "runs": RUNS,
                    "left_to_torch": family.left_to_torch,
                }
                for name, family in self.families.items()
            ],
            "forced": self.forced,
            "chosen": self.chosen,
            "healthy": self.healthy,
        }


def examine() -> Examination:
    """Look at this machine; takes about a second."""
    accelerators = machine.accelerators()
    return Examination(
        versions=_versions(),
        processor=machine.processor(),
        instructions=machine.instructions(),
        threads=torch.get_num_threads(),
        accelerators=accelerators,
        backends=[_diagnose(name) for name in ops.NAMES],
        families=FAMILIES,
        forced=ops.forced(),
        chosen={device: _chosen(device) for device in (["cpu", "cuda"] if accelerators else ["cpu"])},
    )


def _diagnose(name: str) -> Diagnosis:
    reason = ops.why_not(name)
    return Diagnosis(name, reason, None if reason is not None else sums_are_exact(name))


def sums_are_exact(name: str) -> bool:
    """Whether this backend's int32 sums over 192 channels equal the reference's, for 1 and for 37 rows."""
    backend, oracle = ops.backend(name, device=ops.device_of(name)), ReferenceBackend()
    generator, device = torch.Generator().manual_seed(0), ops.device_of(name)
    spec = LinearSpec(75, 4, 64, InputSpec(192, 4, 64, 64))
    q, step, scale = quantize_weight(torch.randn(75, 192, generator=generator), 4, 64)
    weight = LinearWeight(spec, pack_int32(q, 4), step, scale, None)
    moved = LinearWeight(spec, weight.packed.to(device), step.to(device), scale.to(device), None)
    for rows in (1, 37):
        values, _ = oracle.quantize(torch.randn(rows, 192, generator=generator), spec.inputs)
        if not torch.equal(backend.sums(values.to(device), moved).cpu(), oracle.sums(values, weight)):
            return False
    return True


def _chosen(device: str) -> str:
    try:
        return ops.backend(device=device).name
    except QuotaError as error:
        return str(error)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | versions(*_PACKAGES)


def doctor_tables(examination: Examination) -> list[Table]:
    """This machine, its backends, and the supported models."""
    return [_machine_table(examination), _backends_table(examination), _families_table(examination)]


def _machine_table(examination: Examination) -> Table:
    table = WholeTable("This machine", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("processor", f"{examination.processor}, {examination.threads} threads")
    table.add_row("instructions", " ".join(examination.instructions) or "not told by the system")
    table.add_row("accelerators", ", ".join(examination.accelerators) or "none that torch can use")
    table.add_row("versions", ", ".join(f"{name} {version}" for name, version in examination.versions.items()))
    if examination.forced is not None:
        table.add_row("asked for", examination.forced)
    for device, name in examination.chosen.items():
        table.add_row(f"taken on {device}", name)
    return table


def _backends_table(examination: Examination) -> Table:
    table = WholeTable("Operator backends")
    for name in ("backend", "runs here", "integer sums"):
        table.add_column(name)
    for backend in examination.backends:
        table.add_row(backend.name, _running(backend), _exactness(backend))
    return table


def _families_table(examination: Examination) -> Table:
    caption = f"Each tested with {', '.join((*PROMPTS, *RUNS))}; sdpa and eager attention."
    table = WholeTable("Supported models", narrow=True, caption=caption)
    for name in ("family", "class in transformers", VIDEO, "norms,\nactivations"):
        table.add_column(name)
    for architecture, family in examination.families.items():
        left = f"torch's: {', '.join(family.left_to_torch)}" if family.left_to_torch else "operators"
        table.add_row(family.title, architecture, "yes" if VIDEO in family.prompts else "-", left)
    return table


def _running(backend: Diagnosis) -> str:
    return "yes" if backend.why_not is None else f"no: {backend.why_not}"


def _exactness(backend: Diagnosis) -> str:
    if backend.exact is None:
        return "-"
    return "equal the reference's" if backend.exact else "DIFFER from the reference's"
