"""From files to public names: which documented objects a package offers, and under which qualified name.

The same function is often reachable under many names (`numpy.stack` is written in `numpy._core.shape_base`). All names
without a private part are collected by following imports as text; the one with the fewest parts, then the first in the
alphabet, is its name here and the others are aliases. A method that a public class inherits from a private one
(`pandas.DataFrame.fillna`) is named after the public class.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from demo.definitions import Definition, Module, read_module

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SKIPPED_FOLDERS = {"tests", "test", "testing", "_vendor", "vendored", "_vendored", "externals", "idlelib", "lib2to3"}
SKIPPED_FOLDERS |= {"site-packages", "turtledemo", "__pycache__", "ensurepip", "pydoc_data"}
MAX_HOPS = 12  # re-exports of re-exports; more is a cycle


@dataclass
class Entry:
    """One documented public object."""

    name: str
    docstring: str
    place: str
    """Dotted name of where it is written."""
    aliases: list[str] = field(default_factory=list)


def read_package(root: Path, name: str) -> dict[str, Module]:
    """Read every file of a package, or of the single-file module `root`; files that do not parse are left out.

    Args:
        root: folder of the package (with or without `__init__.py`), or a `.py` file.
        name: dotted name of the package; "" for a folder of top-level modules such as the standard library.

    Returns:
        Modules by absolute dotted name.
    """
    modules = {}
    for path in [root] if root.is_file() else sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts if path != root else ()
        if SKIPPED_FOLDERS & set(parts[:-1]) or (parts and parts[-1].startswith(("test_", "conftest"))):
            continue
        kept = [part for part in ((name, *parts) if name else parts) if part != "__init__"]
        try:
            modules[".".join(kept)] = read_module(path, ".".join(kept))
        except (SyntaxError, ValueError, RecursionError):
            continue
    return modules


def public_entries(modules: dict[str, Module]) -> list[Entry]:
    """Every public documented function, class, method and module, each once, sorted by name.

    Args:
        modules: what `read_package` returned; several packages may be merged into one dictionary.
    """
    names = _PublicNames(modules)
    found: dict[str, tuple[str, set[str]]] = {}  # place of definition -> docstring, public names
    for module in modules.values():
        if _is_public(module.name) and module.docstring:
            found[module.name] = module.docstring, {module.name}
        for exported in names.exported_names(module) if _is_public(module.name) else ():
            for place, docstring, name in names.documented(f"{module.name}.{exported}"):
                found.setdefault(place, (docstring, set()))[1].add(name)
        for name, docstring in module.attached.items():
            public = names.canonical(name)
            if _is_public(public):
                found.setdefault(public, (docstring, set()))[1].add(public)
    return _merge_equal_texts(found)


def _merge_equal_texts(found: dict[str, tuple[str, set[str]]]) -> list[Entry]:
    """One entry for each distinct text, whatever the number of objects that carry it."""
    names_of: dict[str, set[str]] = defaultdict(set)
    written_as: dict[str, set[str]] = defaultdict(set)
    originals: dict[str, tuple[str, str]] = {}
    for place, (docstring, names) in found.items():
        key = " ".join(docstring.split())
        originals.setdefault(key, (docstring, place))
        names_of[key] |= names
        written_as[key].add(place.rpartition(".")[2])
    entries = []
    for key, names in names_of.items():

        def rank(name: str, own: set[str] = written_as[key]) -> tuple[int, bool, int, str]:
            return name.count("."), name.rpartition(".")[2] not in own, len(name), name

        first, *aliases = sorted(names, key=rank)
        entries.append(Entry(first, *originals[key], aliases))
    return sorted(entries, key=lambda entry: entry.name)


def _is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


class _PublicNames:
    """Follows names through imports; keeps what it found, since packages re-export the same thing many times."""

    def __init__(self, modules: dict[str, Module]) -> None:
        self.modules = modules
        self._exported: dict[str, dict[str, str]] = {}
        self._inverse: dict[str, str] | None = None

    def exported_names(self, module: Module) -> Iterator[str]:
        """Names of a module meant for its users: `__all__`, else its own definitions; a package also its imports."""
        names = set(module.exported or ())
        if module.exported is None:
            names |= set(module.definitions)
        if module.is_package:
            root = module.name.split(".")[0]
            names |= {local for local, origin in module.imports.items() if origin.split(".")[0] == root}
            for source in module.star_imports:
                names |= set(self._star(source))
        return (name for name in sorted(names) if not name.startswith("_"))

    def _star(self, source: str, hops: int = 0) -> dict[str, str]:
        """What `from source import *` brings, local name to absolute name."""
        if source in self._exported or source not in self.modules or hops > MAX_HOPS:
            return self._exported.get(source, {})
        module = self.modules[source]
        own = {name: f"{source}.{name}" for name in (*module.definitions, *module.imports)}
        for further in module.star_imports:
            own = self._star(further, hops + 1) | own
        wanted = module.exported if module.exported is not None else {name for name in own if not name.startswith("_")}
        self._exported[source] = {name: own.get(name, f"{source}.{name}") for name in wanted}
        return self._exported[source]

    def resolve(self, name: str, hops: int = 0) -> tuple[str, Definition] | None:
        """Follow a dotted name to the place of its definition, None where it leads out of the read packages."""
        module, rest = name, ""
        while module and (module not in self.modules or not rest):
            # also where the whole name is a module: a package often offers a function under the name of its file
            module, _, last = module.rpartition(".")
            rest = f"{last}.{rest}" if rest else last
        if not module or hops > MAX_HOPS:
            return None
        head, _, tail = rest.partition(".")
        read = self.modules[module]
        if head in read.definitions:
            definition: Definition | None = read.definitions[head]
            for part in tail.split(".") if tail else ():
                definition = definition.members.get(part) if definition else None
            return (f"{module}.{rest}", definition) if definition else None
        origin = read.imports.get(head)
        if origin is None:
            for source in read.star_imports:
                origin = self._star(source).get(head)
                if origin:
                    break
        if origin is None or origin == f"{module}.{head}":
            return None
        return self.resolve(f"{origin}.{tail}" if tail else origin, hops + 1)

    def documented(self, name: str) -> Iterator[tuple[str, str, str]]:
        """Place, docstring and public name of an object, of its methods and of what it inherits from hidden bases."""
        resolved = self.resolve(name)
        if resolved is None:
            return
        place, definition = resolved
        if definition.docstring:
            yield place, definition.docstring, name
        for owner, members in self._lineage(name, place, definition):
            for member, method in members.items():
                if method.docstring and not member.startswith("_"):
                    yield f"{owner}.{member}", method.docstring, f"{name}.{member}"
        for attribute, behind in definition.accessors.items():
            for found, docstring, full_name in self.documented(f"{self._module_of(place)}.{behind}"):
                yield found, docstring, f"{name}.{attribute}{full_name.partition(f'.{behind}')[2]}"

    def _lineage(
        self, name: str, place: str, definition: Definition, hops: int = 0
    ) -> Iterator[tuple[str, dict[str, Definition]]]:
        """A class and those of its bases that users know, if at all, under a longer name than its own."""
        yield place, definition.members
        for base in definition.bases if hops < MAX_HOPS else ():
            resolved = self.resolve(f"{self._module_of(place)}.{base}")
            if resolved and self._depth(resolved[0]) > name.count("."):
                yield from self._lineage(name, *resolved, hops + 1)

    def _module_of(self, place: str) -> str:
        module = place.rpartition(".")[0]
        while module and module not in self.modules:
            module = module.rpartition(".")[0]
        return module

    def _depth(self, place: str) -> int:
        """Dots in the public name of a definition; more than any name has where it is private."""
        public = self._places().get(place)
        return public.count(".") if public else 1_000

    def canonical(self, name: str) -> str:
        """The public name of a place given in the text of an `add_newdoc` call, or the name itself."""
        if _is_public(name):
            return name
        head, _, last = name.rpartition(".")
        for depth in range(name.count(".")):
            known = self._places().get(name)
            if known:
                return known
            owner = self._places().get(head)
            if owner:
                return f"{owner}.{last}"
            if depth:
                break
        return self._shortest_export(name)

    def _shortest_export(self, name: str) -> str:
        """`numpy._core.multiarray.array` is offered as `numpy.array`: the import chain is followed from the top."""
        root, _, _ = name.partition(".")
        last = name.rpartition(".")[2]
        top = self.modules.get(root)
        offered = top is not None and (last in top.imports or any(last in self._star(s) for s in top.star_imports))
        return f"{root}.{last}" if offered else name

    def _places(self) -> dict[str, str]:
        """Place of definition to its public name, for everything that has one."""
        if self._inverse is None:
            self._inverse = {}
            for module in self.modules.values():
                for exported in self.exported_names(module) if _is_public(module.name) else ():
                    resolved = self.resolve(f"{module.name}.{exported}")
                    if resolved:
                        known = self._inverse.get(resolved[0])
                        name = f"{module.name}.{exported}"
                        if known is None or (name.count("."), name) < (known.count("."), known):
                            self._inverse[resolved[0]] = name
        return self._inverse
