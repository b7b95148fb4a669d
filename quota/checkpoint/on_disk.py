"""The blocks of a model on disk but for the one that calibration works on.

`OnDisk` is a storage (quota/calibration/storage.py): it reads a block from the source checkpoint, writes it to a file
of its own when it is finished, and frees it. The files are the whole state of a run: one that was interrupted goes
through the model again, takes finished blocks from their files, which costs forward passes only, and comes to the same
streams, bit for bit, at the block where it was interrupted. Of several ranks all read, and the first writes.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from quota.attention.keys import KeyTransform
from quota.calibration.storage import Storage
from quota.checkpoint.weights import Weights
from quota.files import cannot_write
from quota.models import family
from quota.ops import device
from quota.quantization.linear import W4A4Linear
from quota.ranks import ALONE, Ranks
from quota.scheme import QuantizationScheme


class OnDisk(Storage):
    """A model on "meta", of which `weights` are read block by block, and finished blocks written to `folder`."""

    def __init__(
        self,
        model: PreTrainedModel,
        weights: Weights,
        folder: Path,
        scheme: QuantizationScheme,
        ranks: Ranks = ALONE,
    ) -> None:
        """Puts in memory what is in no block (embeddings, norms, head), that of the device of quota/ops/device.py."""
        rooms = family(model)
        self.model: Any = model
        self.weights = weights
        self.folder = folder
        self.scheme = scheme
        self.ranks = ranks
        self.device = device.chosen()
        self.blocks: list[nn.Module] = [*rooms.tower_blocks, *rooms.projectors, *rooms.decoder_layers]
        # As one of the ranks saw them, before it writes more.
        there = ranks.told(len(self.blocks), lambda: [self.file(index).exists() for index in range(len(self.blocks))])
        self._finished = {block for block, found in zip(self.blocks, there, strict=True) if found}
        names = {module: name for name, module in model.named_modules()}
        # Not of the modules inside: to list a linear would keep it in memory when it has been replaced.
        self.names = {block: names[block] for block in self.blocks}
        inside = {module for block in self.blocks for module in block.modules()}
        self._fill({name: module for module, name in names.items() if module not in inside})
        model.tie_weights()

    def file(self, number: int) -> Path:
        """The file of block `number`; -1 is what is in no block."""
        return self.folder / f"model-{number + 2:05d}-of-{len(self.blocks) + 1:05d}.safetensors"

    def fetch(self, block: nn.Module) -> None:
        """Give the modules of `block` their original weights."""
        self._fill(dict(block.named_modules(prefix=self.names[block])))

    def finished(self, block: nn.Module) -> bool:
        """Whether an interrupted run has finished `block`."""
        return block in self._finished

    def restore(self, block: nn.Module, linears: Mapping[str, nn.Linear]) -> bool:
        """Replace `linears`, those of `block`, by the quantised ones in its file, if there is one."""
        if not self.finished(block):
            return False
        stored = load_file(self.file(self.blocks.index(block)))
        for name, linear in linears.items():
            layer = W4A4Linear.empty_like(linear, self.scheme, self.device)
            layer.load_state_dict({key: stored[self.weights.key(f"{name}.{key}")] for key in layer.state_dict()})
            self.model.set_submodule(name, layer)
        return True

    def keep(self, block: nn.Module) -> None:
        """Write `block` as it is now, unless it came from its file."""
        if self.ranks.first and not self.finished(block):
            file, prefix = self.file(self.blocks.index(block)), self.names[block]
            self._write(file, {f"{prefix}.{name}": tensor for name, tensor in block.state_dict().items()})
        _return_freed_memory()

    def keep_rest(self) -> None:
        """Write what is in no block."""
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or {})
        blocks = tuple(f"{self.names[block]}." for block in self.blocks)
        state = self.model.state_dict()
        rest = [name for name in state if name not in tied and not name.startswith(blocks)]
        self._write(self.file(-1), {name: state[name] for name in rest})

    def release(self, block: nn.Module) -> None:
        """Free the memory of `block`, quantised or not."""
        for name, module in list(block.named_modules()):
            # New ones, as what was prepared for running hangs on the old.
            if isinstance(module, KeyTransform):
                empty = KeyTransform(*module.center.shape, device="meta", turning=module.turning is not None)
                block.set_submodule(name, empty)
            elif isinstance(module, W4A4Linear):
                block.set_submodule(name, W4A4Linear.empty_like(module, self.scheme, "meta"))
        block.to("meta")

    def assemble(self) -> None:
        """Put all finished blocks in memory, as their files have them."""
        self.ranks.wait()
        for number, block in enumerate(self.blocks):
            self.fetch(block)
            stored, prefix = load_file(self.file(number)), self.names[block]
            state = {name: self._own(stored[self.weights.key(f"{prefix}.{name}")]) for name in block.state_dict()}
            block.load_state_dict(state, assign=True)

    def _fill(self, modules: Mapping[str, nn.Module]) -> None:
        """Read the tensors of these modules, not of those inside them; buffers in no checkpoint are computed."""
        wanted: dict[str, tuple[dict[str, Any], str, Tensor]] = {}
        for place, module in modules.items():
            derived = module._non_persistent_buffers_set
            if any(module._buffers[name] is not None for name in derived):
                module.to_empty(device=self.device, recurse=False)
                self._owner(place)._init_weights(module)
            for store in (module._parameters, module._buffers):
                for name, tensor in store.items():
                    full = f"{place}.{name}".removeprefix(".")
                    if tensor is not None and name not in derived and full in self.weights.places:
                        wanted[full] = store, name, tensor
        for full, read in self.weights.read(wanted).items():
            store, name, tensor = wanted[full]
            read = read.to(self.device, tensor.dtype)
            store[name] = nn.Parameter(read, requires_grad=False) if isinstance(tensor, nn.Parameter) else read

    def _own(self, read: Tensor) -> Tensor:
        """A copy of what was read from a file, on the device: the file's memory can go."""
        return read.clone() if self.device.type == "cpu" else read.to(self.device)

    def _owner(self, name: str) -> Any:
        """The innermost model of transformers around the module `name`: it knows how its modules are initialised."""
        while name and not isinstance(self.model.get_submodule(name), PreTrainedModel):
            name = name.rpartition(".")[0]
        return self.model.get_submodule(name)

    def _write(self, file: Path, tensors: dict[str, Tensor]) -> None:
        temporary = file.with_name(f".{file.name}.partial")
        contents = {self.weights.key(name): tensor.contiguous() for name, tensor in tensors.items()}
        try:
            save_file(contents, temporary, metadata={"format": "pt"})
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(file)
        except (OSError, SafetensorError) as error:
            raise cannot_write(file, error) from error


def _return_freed_memory() -> None:
    """Give the system what was freed. The C library of Linux keeps it, and it adds up from block to block."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def empty_model(build: Any) -> Any:
    """What `build()` makes, on "meta" and in evaluation mode."""
    with torch.device("meta"):
        return build().eval()
