"""The command `quota` on ranks with different numbers of threads."""

from __future__ import annotations

import os

import torch

from quota.cli import main

if __name__ == "__main__":
    torch.set_num_threads(1 + int(os.environ["RANK"]))
    main()
