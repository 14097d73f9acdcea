"""Recipes: overrides, and errors that name the field and its line."""

from __future__ import annotations

import errno
import importlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from drama_models.errors import RecipeError
from drama_models.recipe import load_recipe, parse_recipe, run_command


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Nested settings."""

    width: int | None = None
    """How wide."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a stage."""

    out: Path
    """Folder to make."""
    steps: int = 10
    """Optimiser steps."""
    rate: float = 0.1
    """Learning rate."""
    dims: tuple[int, ...] = (8, 4)
    """Sizes."""
    inner: Inner = field(default_factory=Inner)
    """Nested."""
    free: dict[str, float] = field(default_factory=dict)
    """Anything."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class Raised:
    """Nested settings of two words."""

    high_up: int = 0
    """How high."""


@dataclass(frozen=True, kw_only=True)
class Dashed:
    """Settings of two words each."""

    out: Path
    """Folder to make."""
    inner_part: Raised = field(default_factory=Raised)
    """Nested."""
    free_form: dict[str, float] = field(default_factory=dict)
    """Anything."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Settings that may be left out as a whole."""

    height: int = 0
    """How high."""
    open: bool = False
    """Whether it is open."""

    def __post_init__(self) -> None:
        if self.height < 0:
            raise ValueError(f"height={self.height} must not be negative.")


@dataclass(frozen=True, kw_only=True)
class Perhaps:
    """Settings with such a part."""

    out: Path
    """Folder to make."""
    perhaps: Part | None = None
    """The part."""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("out: made\nsteps: 20\ndims: [16, 8]\ninner: {width: 3}\nfree: {a: 0.5, b: 1}\n", encoding="utf-8")
    return path


def test_dashes_stand_for_underscores_but_in_names_that_are_free() -> None:
    words = ["--out=a-b", "--inner-part.high-up=2", "--free-form.some-key", "0.5"]
    recipe = parse_recipe(Dashed, words, command="x")
    assert recipe == Dashed(out=Path("a-b"), inner_part=Raised(high_up=2), free_form={"some-key": 0.5})


def test_file_then_overrides(recipe: Path) -> None:
    expected = Settings(out=Path("made"), steps=20, dims=(16, 8), inner=Inner(width=3), free={"a": 0.5, "b": 1})
    assert load_recipe(Settings, recipe) == expected
    words = [str(recipe), "--steps", "5", "--inner.width", "7", "--rate=0.5"]
    changed = parse_recipe(Settings, words, command="x")
    assert (changed.steps, changed.inner.width, changed.rate, changed.dims) == (5, 7, 0.5, (16, 8))
    assert load_recipe(Settings, recipe, out="else").out == Path("else")


@pytest.mark.parametrize(
    ("words", "open_"),
    [
        (["--perhaps.open"], True),
        (["--perhaps.open", "--perhaps.height=2"], True),
        (["--perhaps.open", "true"], True),
        (["--perhaps.open", "false"], False),
        (["--perhaps.open=false"], False),
    ],
)
def test_a_boolean_named_alone_says_yes(words: list[str], open_: bool) -> None:
    recipe = parse_recipe(Perhaps, ["--out", "here", *words], command="x")
    assert recipe.perhaps is not None
    assert recipe.perhaps.open is open_


def test_other_fields_named_alone_want_a_value(recipe: Path) -> None:
    for words in (["--steps"], ["--steps", "--rate=0.5"]):
        with pytest.raises(RecipeError, match="expected one argument"):
            parse_recipe(Settings, [str(recipe), *words], command="x")


def test_without_a_file() -> None:
    assert parse_recipe(Settings, ["--out", "here"], command="x") == Settings(out=Path("here"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out: made\nstesp: 3\n", r"recipe\.yaml, line 2: Settings has no field 'stesp'; did you mean 'steps'\?"),
        ("out: made\ninner:\n  hight: 1\n", r"line 3: Settings has no field 'inner\.hight'; choose one of width"),
        ("out: made\n\nsteps: many\n", r"recipe\.yaml, line 3: .*steps"),
        ("out: made\nsteps: 0\n", r"line 2: steps=0 must be at least 1"),
        ("steps: 3\n", r"required: out"),
        ("- a list\n", r"must be a mapping"),
        ("out: [unclosed\n", r"is not valid YAML"),
    ],
)
def test_errors_name_field_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        load_recipe(Settings, path)


def test_missing_file_and_unknown_flag(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="There is no recipe at"):
        load_recipe(Settings, tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="--stesp"):
        parse_recipe(Settings, [str(recipe), "--stesp", "3"], command="x")


def test_rooms_answer_a_mistake_with_one_sentence(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command(words: list[str]) -> str:
        return f"made {parse_recipe(Settings, words, command='x').out}"

    commands = {"make": (command, "makes it")}
    assert run_command("room", commands, ["make", str(recipe)]) == 0
    assert capsys.readouterr().out == "made made\n"
    assert run_command("room", commands, ["make", str(recipe), "--steps", "0"]) == 2
    assert capsys.readouterr().err == "error: steps=0 must be at least 1.\n"
    assert run_command("room", commands, ["mkae"]) == 2
    assert run_command("room", commands, ["--help"]) == 0
    assert "make" in capsys.readouterr().out


def test_options_do_not_depend_on_the_source_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "stage_under_edit.py"
    source.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n"
        '@dataclass(frozen=True, kw_only=True)\nclass Endpoint:\n    url: str\n    """Where it is."""\n\n'
        '@dataclass(frozen=True, kw_only=True)\nclass Stage:\n    llm: Endpoint\n    """Whom to ask."""\n',
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("stage_under_edit")
    with pytest.raises(SystemExit):
        parse_recipe(module.Stage, ["--help"], command="x")
    assert "Where it is." in capsys.readouterr().out
    source.write_text("class Endpoint(:\n" * 20, encoding="utf-8")  # being edited
    stage = parse_recipe(module.Stage, ["--llm.url=http://h/v1"], command="x")
    assert stage.llm.url == "http://h/v1"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_place_that_is_not_ours_is_no_traceback(code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def command(_: list[str]) -> str:
        raise OSError(code, os.strerror(code), "/somewhere/out")

    assert run_command("room", {"make": (command, "makes it")}, ["make"]) == 2
    refused = f"error: /somewhere/out cannot be used ({os.strerror(code)}); check that it is the path you mean"
    assert capsys.readouterr().err == f"{refused}, and its permissions.\n"


@dataclass(frozen=True, kw_only=True)
class Overridden:
    """Of every kind that keyword arguments may have."""

    steps: int
    name: str
    limit: int | None
    sizes: list[int]
    flag: bool


def test_optional_parts_say_what_is_wrong_with_them_and_where(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("out: made\n\nperhaps:\n  height: -1\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"^[^ ]*recipe\.yaml, line 4: height=-1 must not be negative\.$"):
        load_recipe(Perhaps, path)


def test_overrides_in_python_are_the_values_that_they_are(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("steps: 3\nname: words\nlimit: 4\nsizes: [1]\nflag: true\n", encoding="utf-8")
    overrides = {"limit": None, "sizes": [2, 3], "flag": False, "name": "null and void", "steps": 5}
    assert load_recipe(Overridden, path, **overrides) == Overridden(**overrides)  # type: ignore[arg-type]
