"""The public kit for whoever writes a method: rounds in one process, and the properties that every method keeps."""

from fedge.testing.driver import drive, start
from fedge.testing.kit import PROPERTIES, Checked, NotConforming, check_method

__all__ = ["PROPERTIES", "Checked", "NotConforming", "check_method", "drive", "start"]
