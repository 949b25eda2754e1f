"""hpfwi: distributed seismic waveform inversion with neural and grid parameterisations of the earth model."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("hpfwi")
except PackageNotFoundError:  # a source tree on the path, without an installation
    __version__ = "0+unknown"

__all__ = ["__version__"]
