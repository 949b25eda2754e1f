"""Exceptions of the kernels layer; each is built from one finished sentence, so it survives pickling."""


class KernelError(ValueError):
    """A kernel was asked for something it cannot compute correctly."""


class StabilityError(KernelError):
    """The time step is above the Courant limit of the scheme."""


class GeometryError(KernelError):
    """A source or receiver cannot be placed on the grid."""


class ModelError(KernelError):
    """The model or the wavelet holds values or shapes the kernel cannot use."""
