"""Recipes that come with the project, by name: the shapes that papers published, and ours where they leave one open."""

from __future__ import annotations

from pathlib import Path

from drama_models.errors import RecipeError

RECIPES = Path(__file__).parent / "recipes"
PRESETS = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def recipe_path(name: str) -> Path:
    """The file of a preset, or of a recipe given by its path.

    Raises:
        RecipeError: neither of them.
    """
    path = PRESETS.get(name, Path(name))
    if not path.is_file():
        raise RecipeError(f"There is no preset and no recipe file called {name!r}; presets: {', '.join(PRESETS)}.")
    return path
