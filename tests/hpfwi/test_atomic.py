import os
from pathlib import Path

import pytest

from hpfwi.errors import ConfigError, DataError
from hpfwi.store.atomic import new_file, new_folder, refuse_unwritable


def write(path: Path, text: str, *, overwrite: bool = False) -> None:
    """A file, or a folder with one file, holding text; an empty one fails half-way."""
    if path.suffix == ".npy":
        with new_file(path, overwrite=overwrite) as temporary:
            temporary.write_text(text)
            assert temporary.suffix == path.suffix
            1 / len(text)
    else:
        with new_folder(path, overwrite=overwrite) as temporary:
            temporary.mkdir()
            (temporary / "part").write_text(text)
            1 / len(text)


def text_of(path: Path) -> str:
    return (path if path.is_file() else path / "part").read_text()


@pytest.mark.parametrize("name", ["a.npy", "a.zarr"])
def test_a_path_appears_whole_and_is_replaced_only_when_told(tmp_path: Path, name: str) -> None:
    final = tmp_path / "deep" / name
    with pytest.raises(ZeroDivisionError):
        write(final, "")
    assert not final.exists()
    write(final, "1")
    with pytest.raises(ConfigError, match="exists already"):
        write(final, "2")
    with pytest.raises(ZeroDivisionError):
        write(final, "", overwrite=True)
    assert text_of(final) == "1"
    write(final, "3", overwrite=True)
    assert text_of(final) == "3"
    assert list(final.parent.iterdir()) == [final]


@pytest.mark.parametrize("name", ["a.npy", "a.zarr"])
def test_a_place_that_refuses_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        refuse_unwritable(tmp_path / "file" / name)
    with pytest.raises(DataError, match="cannot be written"):
        write(tmp_path / "file" / name, "1")
    refuse_unwritable(tmp_path / name)

    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        write(tmp_path / name, "1")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
