"""What each part of the quantiser is worth: tables over modules, methods, KV bits and calibration size.

settings    the rows of every table
subjects    what a row is measured on: the reference model, or SmolLM2
cells       a row under one seed, measured once and kept in a file, so that a table can be interrupted
table       rows over seeds, with their 95% intervals
"""

from quota_lab.ablation.settings import TABLES, Setting
from quota_lab.ablation.subjects import Reference, SmolLM2, Subject
from quota_lab.ablation.table import Ablation, Row, ablate

__all__ = ["TABLES", "Ablation", "Reference", "Row", "Setting", "SmolLM2", "Subject", "ablate"]
