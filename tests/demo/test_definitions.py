"""What is read from the text of one file; nothing is ever run."""

from __future__ import annotations

from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from demo.definitions import Module, read_module

if TYPE_CHECKING:
    from pathlib import Path


def read(tmp_path: Path, text: str, *, name: str = "package.module", file: str = "module.py") -> Module:
    path = tmp_path / file
    path.write_text(dedent(text), encoding="utf-8")
    return read_module(path, name)


def test_files_are_read_and_never_run(tmp_path: Path) -> None:
    module = read(tmp_path, '"""Says what."""\nraise SystemExit("this ran")\ndef late():\n    "Still found."\n')
    assert module.docstring == "Says what."
    assert module.definitions["late"].docstring == "Still found."


def test_classes_hold_methods_bases_and_accessors(tmp_path: Path) -> None:
    module = read(
        tmp_path,
        '''
        class Series(base.NDFrame, Generic[T]):
            """A column."""
            str = Accessor("str", StringMethods)
            if True:
                def rank(self):
                    """Rank the values."""
        ''',
    )
    series = module.definitions["Series"]
    assert series.bases == ["base.NDFrame", "Generic"]
    assert series.members["rank"].docstring == "Rank the values."
    assert series.accessors == {"str": "StringMethods"}


def test_of_overloads_the_documented_one_counts(tmp_path: Path) -> None:
    module = read(tmp_path, 'def f(): ...\ndef f():\n    "First text."\ndef f():\n    "Second text."\n')
    assert module.definitions["f"].docstring == "First text."


def test_imports_are_made_absolute(tmp_path: Path) -> None:
    text = """
    import numpy as np, os.path
    from . import sibling
    from ..other import thing as alias
    from .stars import *
    if TYPE_CHECKING:
        from .typed import Late
    try:
        from .fast import speed
    except ImportError:
        from .slow import fallback
    """
    module = read(tmp_path, text, name="package.sub.module")
    assert module.imports == {
        "np": "numpy",
        "os": "os",
        "sibling": "package.sub.sibling",
        "alias": "package.other.thing",
        "Late": "package.sub.typed.Late",
        "speed": "package.sub.fast.speed",
        "fallback": "package.sub.slow.fallback",
    }
    assert module.star_imports == ["package.sub.stars"]
    package = read(tmp_path, "from .core import stack", name="package", file="__init__.py")
    assert package.imports == {"stack": "package.core.stack"}


def test_exports_that_are_literals_are_known_and_computed_ones_are_not(tmp_path: Path) -> None:
    literal = read(tmp_path, '__all__ = ["a"] + ["b"]\n__all__ += ("c",)\n__all__.extend(["d"])\n__all__.append("e")\n')
    assert literal.exported == {"a", "b", "c", "d", "e"}
    assert read(tmp_path, "__all__ = [name for name in dir()]").exported is None
    assert read(tmp_path, "x = 1").exported is None


def test_docstrings_of_compiled_functions(tmp_path: Path) -> None:
    text = '''
    add_newdoc("numpy._core.multiarray", "array", """array(object, *)\\n--\\n\\nMake an array.""")
    add_newdoc("numpy", "ndarray", ("T", """The transpose."""))
    add_docstr(torch.abs, """Absolute value, {dtype}.""".format(**common))
    add_docstr_all("add", """Add in place.""")
    det = _add_docstr(_linalg.det, """Determinant.""")
    '''
    module = read(tmp_path, text, name="torch.linalg")
    assert module.attached == {
        "numpy._core.multiarray.array": "Make an array.",
        "numpy.ndarray.T": "The transpose.",
        "torch.abs": "Absolute value, dtype.",
        "torch.Tensor.add": "Add in place.",
        "_linalg.det": "Determinant.",
        "torch.linalg.det": "Determinant.",
    }


@pytest.mark.parametrize(("text", "error"), [(b"def (:", SyntaxError), (b"x = 1\x00", (ValueError, SyntaxError))])
def test_what_does_not_parse_is_an_error(tmp_path: Path, text: bytes, error: type[Exception]) -> None:
    path = tmp_path / "module.py"
    path.write_bytes(text)
    with pytest.raises(error):
        read_module(path, "module")


def test_bytes_that_are_not_utf8_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_bytes(b'"""Caf\xe9."""\n')
    assert read_module(path, "module").docstring == "Caf\ufffd."
