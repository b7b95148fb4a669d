"""`python -m quota` is the command `quota`: torchrun starts modules."""

from __future__ import annotations

from quota.cli import main

if __name__ == "__main__":
    main()
