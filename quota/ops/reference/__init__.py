"""The reference backend: the definition of every job, which the others are compared with."""

from quota.ops.reference.backend import ReferenceBackend

__all__ = ["ReferenceBackend"]
