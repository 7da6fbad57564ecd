"""The public kit for whoever writes a method or a codec: rounds in one process, and the properties that each keeps."""

from fedge.testing.codecs import check_codec
from fedge.testing.driver import drive, start
from fedge.testing.kit import PROPERTIES, Checked, NotConforming, check_method

__all__ = ["PROPERTIES", "Checked", "NotConforming", "check_codec", "check_method", "drive", "start"]
