"""What was trained, as it ships: the stock projector's tensors and the decoder's additions in bfloat16.

projector.linear_1.weight ...            the stock projector
decoder.layers.0.self_attn.q_proj.down   A [r, in]
decoder.layers.0.self_attn.q_proj.up     B [out, r]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from quota.errors import QuotaError
from quota.files import write_atomically
from quota_lab.testbeds.vlm.low_rank import merge
from quota_lab.testbeds.vlm.network import Network

FILE = Path(__file__).parent / "adapter" / "adapter.safetensors"
LIMIT = 16 * 2**20
_PROJECTOR, _DECODER = "projector.", "decoder."


def trained(network: Network) -> dict[str, Tensor]:
    """The tensors of a network, in bfloat16."""
    tensors = {f"{_PROJECTOR}{name}": tensor for name, tensor in network.projector.folded().items()}
    for name, part in network.adapters.items():
        tensors |= {f"{_DECODER}{name}.down": part.down, f"{_DECODER}{name}.up": part.up}
    return {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}


def write(tensors: dict[str, Tensor], file: Path = FILE) -> None:
    """QuotaError if they take more room than LIMIT."""
    content = save(tensors)
    if len(content) > LIMIT:
        raise QuotaError(f"the adapter takes {len(content):,} bytes, at most {LIMIT:,} ship; train with a smaller rank")
    write_atomically(file, content)


def read(file: Path = FILE) -> dict[str, Tensor]:
    if not file.is_file():
        raise QuotaError(f"{file} does not exist; train it with `quota testbed vlm train`")
    return load_file(file)


def apply(model: Any, tensors: dict[str, Tensor]) -> None:
    """Put what was trained into a stock LLaVA of the untrained parts, in place. Strict: every tensor has its place."""
    projector = {n.removeprefix(_PROJECTOR): t.float() for n, t in tensors.items() if n.startswith(_PROJECTOR)}
    additions = {n.removeprefix(_DECODER): t for n, t in tensors.items() if n.startswith(_DECODER)}
    if len(projector) + len(additions) != len(tensors):
        raise QuotaError("the adapter holds tensors of another model; build with the one that ships")
    model.model.multi_modal_projector.load_state_dict(projector, strict=True)
    merge(model.model.language_model, additions)
