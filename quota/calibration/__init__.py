"""One sweep through a model: quantise and measure, block by block."""

from quota.calibration.curves import Curves
from quota.calibration.sweep import Calibration, Sweep, calibrate

__all__ = ["Calibration", "Curves", "Sweep", "calibrate"]
