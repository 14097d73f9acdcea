"""What one Python file defines, documents and re-exports, read from its syntax tree alone.

Nothing is imported or run: a file is text, so the reading is the same on every machine and safe for any package.
Beside ordinary docstrings this knows the ways in which compiled functions get theirs from Python source:
`add_newdoc(place, name, doc)` (NumPy, SciPy), `add_docstr(object, doc)` and `add_docstr_all(name, doc)` (PyTorch).
Which of the found names are public is decided in `demo.public_names`.
"""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
PLACEHOLDER = re.compile(r"\{(\w+)\}")
TENSOR_METHODS = "torch.Tensor"  # where PyTorch hangs what add_docstr_all documents
ARRAY_METHODS = "numpy.ndarray"  # and NumPy what _array_method_doc documents
SIGNATURE_END = "\n--\n\n"  # ends the signature that Python cuts off a compiled function's docstring


@dataclass
class Definition:
    """A function or class as written in its file; methods are the members of their class."""

    docstring: str
    bases: list[str] = field(default_factory=list)
    """Dotted names of the base classes, as spelled in the file."""
    members: dict[str, Definition] = field(default_factory=dict)
    accessors: dict[str, str] = field(default_factory=dict)
    """Attribute to the dotted name of the class behind it: pandas' `str = Accessor("str", StringMethods)`."""


@dataclass
class Module:
    """One file: its own definitions, the names it takes from elsewhere, and what it says is public."""

    name: str
    is_package: bool
    docstring: str = ""
    definitions: dict[str, Definition] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)
    """Local name to the absolute dotted name it stands for."""
    star_imports: list[str] = field(default_factory=list)
    exported: set[str] | None = None
    """Names in `__all__`, None where the file has none that can be read without running it."""
    computes_exports: bool = False
    """Whether a part of `__all__` is the result of running something."""
    attached: dict[str, str] = field(default_factory=dict)
    """Absolute dotted name to a docstring that this file gives to an object defined in compiled code."""


def read_module(path: Path, name: str) -> Module:
    """Read one file.

    Args:
        path: the `.py` file; bytes that are not UTF-8 are replaced.
        name: its absolute dotted module name, without `.__init__`.

    Raises:
        SyntaxError: the file is not Python that this interpreter can parse.
        ValueError: the file holds a NUL byte.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's docstrings are not our reader's business
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    module = Module(name, is_package=path.name == "__init__.py", docstring=ast.get_docstring(tree) or "")
    for node in _statements(tree.body):
        _read_statement(node, module)
    if module.computes_exports:
        module.exported = None
    return module


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level statements, those under `if`, `try` and `with` included (`if TYPE_CHECKING:` holds re-exports)."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from _statements(getattr(node, part, []))
        for handler in getattr(node, "handlers", []):
            yield from _statements(handler.body)


def _read_statement(node: ast.stmt, module: Module) -> None:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            _keep_documented(module.definitions, node)
        case ast.Import():
            for alias in node.names:
                module.imports[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        case ast.ImportFrom():
            _read_import_from(node, module)
        case ast.Assign(targets=[ast.Name(), *_] as targets, value=value):
            for target in targets:
                if isinstance(target, ast.Name):
                    _read_assignment(target.id, value, module)
        case ast.Assign(targets=[ast.Attribute(value=ast.Name(id=owner), attr="__doc__")], value=value):
            if owner in module.definitions and (text := _text(value)):
                module.definitions[owner].docstring = inspect.cleandoc(text)
        case ast.AugAssign(target=ast.Name(id="__all__"), value=value):
            _export(module, value)
        case ast.Expr(value=ast.Call() as call):
            _read_call(call, module)


def _keep_documented(definitions: dict[str, Definition], node: Documented) -> None:
    """Of several definitions of one name (overloads, fallbacks), the first with a docstring."""
    known = definitions.get(node.name)
    if known is None or not known.docstring:
        definitions[node.name] = _definition(node)


def _definition(node: Documented) -> Definition:
    definition = Definition(ast.get_docstring(node) or "")
    if not isinstance(node, ast.ClassDef):
        return definition
    definition.bases = [name for base in node.bases if (name := _dotted(base))]
    for member in _statements(node.body):
        match member:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                _keep_documented(definition.members, member)
            case ast.Assign(targets=[ast.Name(id="__doc__")], value=value):
                definition.docstring = inspect.cleandoc(_text(value) or "")
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=function, args=[_, ast.Name(id=behind)])):
                if (_dotted(function) or "").endswith("Accessor"):
                    definition.accessors[name] = behind
    return definition


def _read_import_from(node: ast.ImportFrom, module: Module) -> None:
    source = node.module or ""
    if node.level:
        package = module.name.split(".")
        above = node.level - 1 if module.is_package else node.level
        kept = package[: len(package) - above]
        source = ".".join([*kept, source] if source else kept)
    for alias in node.names:
        if alias.name == "*":
            module.star_imports.append(source)
        else:
            module.imports[alias.asname or alias.name] = f"{source}.{alias.name}"


def _read_assignment(target: str, value: ast.expr, module: Module) -> None:
    if target == "__all__":
        _export(module, value)
    elif isinstance(value, ast.Name | ast.Attribute):
        # `concatenate = cat`: another name for the same thing
        name = _dotted(value)
        if name and name.split(".")[0] in module.definitions.keys() | module.imports.keys():
            head, _, rest = name.partition(".")
            origin = module.imports.get(head, f"{module.name}.{head}")
            module.imports.setdefault(target, f"{origin}.{rest}" if rest else origin)
    elif isinstance(value, ast.Call):
        _read_call(value, module, target)
        if _dotted(value.func) == f"{target}_gen":  # scipy.stats: norm = norm_gen(name="norm")
            module.imports.setdefault(target, f"{module.name}.{target}_gen")


def _read_call(call: ast.Call, module: Module, target: str | None = None) -> None:
    """Docstrings given to compiled functions, and `__all__.extend([...])`."""
    function = (_dotted(call.func) or "").split(".")[-1]
    arguments = call.args
    if _dotted(call.func) in ("__all__.extend", "__all__.append") and arguments:
        _export(module, arguments[0])
    elif function in ("add_docstr", "_add_docstr") and len(arguments) >= 2:
        _attach(module, _dotted(arguments[0]), _text(arguments[1]))
        if target:  # `norm = _add_docstr(_linalg.linalg_norm, ...)`: the assigned name is the public one
            _attach(module, f"{module.name}.{target}", _text(arguments[1]))
    elif function == "add_docstr_all" and len(arguments) >= 2:
        _attach(module, f"{TENSOR_METHODS}.{_text(arguments[0])}", _text(arguments[1]))
    elif function == "add_newdoc":
        _read_add_newdoc(arguments, module)
    elif function == "_array_method_doc" and len(arguments) == 3:
        _attach(module, f"{ARRAY_METHODS}.{_text(arguments[0])}", _text(arguments[2]))


def _read_add_newdoc(arguments: list[ast.expr], module: Module) -> None:
    place = _text(arguments[0]) if arguments else None
    if len(arguments) == 2:  # scipy.special: add_newdoc("erf", doc)
        public = module.name.rpartition(".")[0]
        _attach(module, f"{public}.{place}", _text(arguments[1]))
    elif len(arguments) == 3:
        name = _text(arguments[1])
        pair = arguments[2]
        if isinstance(pair, ast.Tuple) and len(pair.elts) == 2:
            _attach(module, f"{place}.{name}.{_text(pair.elts[0])}", _text(pair.elts[1]))
        else:
            _attach(module, f"{place}.{name}", _text(pair))


def _attach(module: Module, name: str | None, docstring: str | None) -> None:
    if name and docstring:
        text = inspect.cleandoc(docstring)
        module.attached.setdefault(name, text.partition(SIGNATURE_END)[2] or text)


def _text(node: ast.expr) -> str | None:
    """The string that an expression of literals stands for; `{name}` is left as `name` where it is formatted in."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return "".join(filter(None, (_text(left), _text(right)))) or None
        case ast.Call(func=ast.Attribute(value=template, attr="format")):
            formatted = _text(template)
            return PLACEHOLDER.sub(r"\1", formatted).replace("{{", "{").replace("}}", "}") if formatted else None
        case ast.Call(func=ast.Attribute(attr="dedent" | "cleandoc"), args=[inner, *_]):
            return _text(inner)
        case ast.JoinedStr(values=parts):
            return "".join(filter(None, map(_text, parts))) or None
    return None


def _export(module: Module, names: ast.expr) -> None:
    """Add the literal names of an `__all__`; one that is computed at run time counts as not there."""
    if isinstance(names, ast.BinOp):
        _export(module, names.left)
        _export(module, names.right)
    elif isinstance(names, ast.List | ast.Tuple | ast.Set | ast.Constant):
        items = [names] if isinstance(names, ast.Constant) else names.elts
        literals = {item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)}
        module.exported = (module.exported or set()) | literals
    else:
        module.computes_exports = True


def _dotted(node: ast.expr) -> str | None:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attribute):
            head = _dotted(value)
            return f"{head}.{attribute}" if head else None
        case ast.Subscript(value=value):  # Generic[T]
            return _dotted(value)
    return None
