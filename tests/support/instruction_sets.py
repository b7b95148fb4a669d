"""The instruction sets of the cpu backend, for tests that must hold on each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from quota.ops.cpu import library

NOT_BUILT = library.why_not()
needs_library = pytest.mark.skipif(NOT_BUILT is not None, reason=str(NOT_BUILT))

HERE = () if NOT_BUILT else library.ISAS[: library.ISAS.index(library.best_isa()) + 1]
"""Those that this machine has."""

every_isa = pytest.mark.parametrize(
    "isa", [pytest.param(name, marks=[] if name in HERE else pytest.mark.skip("not here")) for name in library.ISAS]
)


@contextmanager
def using(isa: str) -> Iterator[None]:
    """Force one, as users do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.ENVIRONMENT_VARIABLE, isa)
        library.isa.cache_clear()
        try:
            yield
        finally:
            library.isa.cache_clear()
