"""Print the signature of every public name of zipsdk: python -m tests.tools.signatures > tests/zipsdk/signatures.txt"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import zipsdk


def signatures() -> str:
    """Return a line for each class, method, property and function of `zipsdk.__all__`."""
    return "".join(f"{line}\n" for name in zipsdk.__all__ for line in _lines(name, getattr(zipsdk, name)))


def _lines(name: str, thing: Any) -> Iterator[str]:
    if isinstance(thing, ModuleType):
        if thing.__name__.startswith("zipsdk"):
            for member in sorted(thing.__all__):
                yield from _lines(f"{name}.{member}", getattr(thing, member))
    elif getattr(thing, "_is_protocol", False):
        yield f"protocol {name}"
        yield from _members(name, thing)
    elif isinstance(thing, frozenset | int):
        yield name
    elif not inspect.isclass(thing):
        yield f"def {name}{_text(thing)}"
    else:
        yield f"class {name}{_text(thing) if _own(thing, '__init__') or _own(thing, '__new__') else ''}"
        yield from _members(name, thing)


def _members(name: str, cls: type) -> Iterator[str]:
    for member in sorted(dir(cls)):
        if (member == "__call__" or not member.startswith("_")) and (found := _own(cls, member)) is not None:
            if isinstance(found, property) and found.fget:
                yield f"    {name}.{member}: {inspect.signature(found.fget).return_annotation}"
            elif callable(getattr(cls, member)):
                yield f"    {name}.{member}{_text(getattr(cls, member))}"


def _own(cls: type, member: str) -> Any:
    """Return a member that zipsdk defines, or None."""
    for base in cls.__mro__:
        if member in vars(base):
            return vars(base)[member] if base.__module__.startswith("zipsdk") else None
    return None


def _text(function: Any) -> str:
    """Write a signature as the source does, alike in all versions of Python."""
    signature = inspect.signature(function)
    parts, bare = [], False
    for p in signature.parameters.values():
        if p.kind is p.KEYWORD_ONLY and not bare:
            parts.append("*")
        bare = bare or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        star = "*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else ""
        annotation = "" if p.annotation is p.empty else f": {p.annotation}"
        parts.append(f"{star}{p.name}{annotation}" + ("" if p.default is p.empty else f" = {p.default!r}"))
    positional = [i for i, p in enumerate(signature.parameters.values()) if p.kind is p.POSITIONAL_ONLY]
    if positional:
        parts.insert(positional[-1] + 1, "/")
    result = signature.return_annotation
    return f"({', '.join(parts)})" + ("" if result is signature.empty else f" -> {result}")


if __name__ == "__main__":
    print(signatures(), end="")
