"""Hashes of syntax trees: equal in all Python versions and layouts, different for different code."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flops_fit_core.plugins import syntax_hash
from flops_fit_core.plugins.syntax_hash import hash_syntax

SAMPLE = Path(__file__).parent / "golden" / "syntax.py.txt"
SAMPLE_HASH = "d71980e7669fd552"
"""Computed with Python 3.11.7, 3.12.1 and 3.13.0. The grammar of Python 3.14 adds only template strings, and this
file has none."""


def hash_source(text):
    return hash_syntax([ast.parse(text)])


def pythons():
    """Every supported interpreter on this machine."""
    names = [f"python3.{minor}" for minor in range(11, 16)]
    paths = [shutil.which(name) for name in names]
    paths += Path("~/.pyenv/versions").expanduser().glob("3.1[1-9].*/bin/python")
    runnable = {str(path) for path in paths if path and "shims" not in str(path)}  # a shim of pyenv may not run
    return sorted({sys.executable, *runnable})


def test_every_supported_python_computes_the_same_hash():
    assert hash_source(SAMPLE.read_text()) == SAMPLE_HASH
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import ast; from syntax_hash import hash_syntax; "
        "print(hash_syntax([ast.parse(open(sys.argv[2], encoding='utf-8').read())]))"
    )
    for python in pythons():
        arguments = [python, "-B", "-I", "-c", program, str(Path(syntax_hash.__file__).parent), str(SAMPLE)]
        done = subprocess.run(arguments, capture_output=True, text=True)
        assert done.stdout.strip() == SAMPLE_HASH, f"{python}: {done.stdout}{done.stderr}"


def test_the_sample_has_every_statement_expression_pattern_and_operator():
    kinds = (ast.stmt, ast.expr, ast.pattern, ast.operator, ast.unaryop, ast.cmpop, ast.boolop)
    newer = {"TypeAlias", "TemplateStr", "Interpolation"}  # Python 3.12 and 3.14
    names = {child.__name__ for kind in kinds for child in kind.__subclasses__()} - newer
    deprecated = {"Num", "Str", "Bytes", "NameConstant", "Ellipsis", "Index", "ExtSlice"}
    assert names - deprecated <= {type(node).__name__ for node in ast.walk(ast.parse(SAMPLE.read_text()))}


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("x = 1", "x = 2"),
        ("x = 1", "x = True"),
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = '1'"),
        ("x = 'a'", "x = b'a'"),
        ("x = None", "x = 'None'"),
        ("x = 0.0", "x = -0.0"),
        ("x = 'a', 'b'", "x = 'ab'"),
        ("f(a, b)", "f((a, b))"),
        ("f(a, *b)", "f(a, b)"),
        ("f(a=1)", "f(b=1)"),
        ("{**a}", "{None: a}"),
        ("x = a if b else c", "x = b if a else c"),
        ("a - b - c", "a - (b - c)"),
        ("x[1:]", "x[:1]"),
        ("x[::1]", "x[:1]"),
        ("def f(a, /): return a", "def f(a): return a"),
        ("def f(*, a): return a", "def f(a): return a"),
        ("def f(a, b=1): return a", "def f(a=1, b=1): return a"),
        ("def f(*, a=1, b): return a", "def f(*, a, b=1): return a"),
        ("def f(): return 1", "async def f(): return 1"),
        ("if a: b()\nelse: c()", "if a: b()\nc()"),
        ("if a:\n    b()\n    c()", "if a:\n    b()\nc()"),
        ("f'{x}'", "f'{x!r}'"),
        ("f'{x:3}'", "f'{x:4}'"),
        ("f'{x}'", "'{x}'"),
        ("f'a{x}b'", "f'ab{x}'"),
        ("from a import b", "from .a import b"),
        ("from a import b", "from . import b"),
        ("import a as b", "import a"),
        ("import a\nf()\nimport b", "import a\nimport b\nf()"),
        ("class A(B): pass", "class A(metaclass=B): pass"),
        ("try: a()\nexcept B: pass", "try: a()\nexcept* B: pass"),
        ("x: int = 1", "x = 1"),
        ("return_ = (yield_)", "return_ = (yield_,)"),
        ("lambda: (yield)", "lambda: (yield None)"),
    ],
)
def test_different_code_has_a_different_hash(text, other):
    assert hash_source(text) != hash_source(other)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("def f():\n    'One.'\n    return 1", "def f():\n    return 1"),
        ("def f():\n    'One.'", "def f(): pass"),
        ("'''One.'''\nx = 1", "x = 1"),
        ("class A:\n    x = 1\n    'Of x.'", "class A: x = 1"),
        ("x = 'a' 'b'  # both", "x = (\n    'ab'\n)"),
        ("x = u'a'", "x = 'a'"),
        ("x = r'\\d'", "x = '\\\\d'"),
        ("x = 0xff", "x = 255"),
        ("x = 1e-3", "x = 0.001"),
        ("f(a, b,)", "f(\n    a,\n    b,\n)"),
        ("del (a, b)", "del a, b"),
        ("class A(): x = 1", "class A: x = 1"),
        ("import b, a", "import a\nimport b"),
        ("from a import c, b", "from a import b\nfrom a import c"),
        ("x = (a + b) * c; y = 1", "x = ((a) + (b)) * (c)\n\n\ny = 1"),
        ("f'{x}' 'a' f'b'", "f'{x}ab'"),
        ("if a:\n    b()\nelse:\n    pass", "if a:\n    b()"),
        ("with (a as b, c as d): e()", "with a as b, c as d:\n    e()"),
    ],
)
def test_equivalent_code_has_the_same_hash(text, other):
    assert hash_source(text) == hash_source(other)


def test_deep_and_long_code_is_hashed():
    text = "x = " + " + ".join("a" for _ in range(900))
    assert hash_source(text) != hash_source(text + " + b")
