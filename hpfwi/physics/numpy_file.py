"""Reading the .npy and .npz files that people name: nothing is unpickled, and what is wrong with one is one clause."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np


def load_numpy(path: Path) -> Any:
    """The array of a .npy file or the open archive of a .npz file.

    raises  ValueError: the file cannot be read; its text is the reason, a clause for the caller's sentence
    """
    try:
        return np.load(path, allow_pickle=False)
    except OSError as error:
        raise ValueError(error.strerror or "it ends too early") from error
    except EOFError as error:
        raise ValueError("it is empty") from error
    except zipfile.BadZipFile as error:
        raise ValueError("it is a damaged archive") from error
    except ValueError as error:
        if "pickle" in str(error):  # NumPy takes for pickled what has no header of its own, and advises to load it so
            raise ValueError("it is no NumPy file, or one of Python objects") from error
        raise
