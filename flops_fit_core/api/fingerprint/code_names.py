"""The names that a function's compiled code uses, nested functions included."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType
from typing import NamedTuple

_GLOBAL = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
_ATTRIBUTE = {"LOAD_ATTR", "LOAD_METHOD"}


class ImportedModule(NamedTuple):
    """An import statement in a function."""

    module: str
    names: tuple[str, ...]
    level: int


def global_names(code: CodeType) -> set[tuple[str, ...]]:
    """Global variables and the attributes read from them: ``("layers", "Block")`` for ``layers.Block``."""
    chains: set[tuple[str, ...]] = set()
    for part in _nested(code):
        chain: tuple[str, ...] = ()
        for instruction in dis.get_instructions(part):
            if chain and instruction.opname in _ATTRIBUTE:
                chain = (*chain, str(instruction.argval))
                continue
            if chain:
                chains.add(chain)
            chain = (str(instruction.argval),) if instruction.opname in _GLOBAL else ()
    return chains


def imports(code: CodeType) -> set[ImportedModule]:
    """The import statements in a function."""
    statements: set[ImportedModule] = set()
    for part in _nested(code):
        instructions = list(dis.get_instructions(part))
        for index, instruction in enumerate(instructions):
            if instruction.opname == "IMPORT_NAME":
                level, names = instructions[index - 2].argval, instructions[index - 1].argval
                statements.add(ImportedModule(str(instruction.argval), tuple(names or ()), int(level)))
    return statements


def reads_attribute(code: CodeType, name: str) -> bool:
    """Whether a function uses an attribute with this name."""
    return any(name in part.co_names for part in _nested(code))


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
