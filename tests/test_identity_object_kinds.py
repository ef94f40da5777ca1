"""Fingerprints follow code behind every kind of object: enums, named tuples, descriptors, wrappers, caches."""

import pytest
from user_package import edit, identity, package  # noqa: F401

SOURCES = {
    "enum": """from enum import Enum
class A(Enum):
    X=1
    def f(self): return 3
def make(w): return A.X.f()
""",
    "enum member in a default": """from enum import Enum
class A(Enum):
    X=1
    def f(self): return 3
def make(w,a=A.X): return a.f()
""",
    "global enum member": """from enum import Enum
class A(Enum):
    X=1
    def f(self): return 3
D=A.X
def make(w): return D.f()
""",
    "namedtuple": """from typing import NamedTuple
class C(NamedTuple):
    d: int = 3
D=C()
def make(w): return D.d
""",
    "namedtuple method": """from typing import NamedTuple
class C(NamedTuple):
    d: int = 3
    def f(self): return 1
D=C()
def make(w): return D.f()
""",
    "dict subclass": """class C(dict):
    def f(self): return 1
D=C(a=2)
def make(w): return D.f()
""",
    "int subclass": """class C(int):
    def f(self): return 1
D=C(2)
def make(w): return D.f()
""",
    "dataclass instance": """from dataclasses import dataclass
@dataclass
class C:
    d: int = 3
    e: int = 5
    @property
    def p(self): return self.d+1
D=C(d=4)
def make(w): return D.p
def make2(w): return D.d
""",
    "attribute from __getattr__": """class C:
    def __init__(self): self.x=1
    def __getattr__(self,n): return helper()
def helper(): return 1
D=C()
def make(w): return D.zz
""",
    "generator and coroutine": """def h(x): yield 1
async def make(w):
    return [x for x in h(w)]
""",
    "default of a nested lambda": """def h(x): return 1
def make(w):
    return (lambda y, f=h: f(y))(w)
""",
    "base class in a function": """class B:
    x=1
def make(w):
    class N(B):
        y=B
    return N
""",
    "generic base class": """from typing import Generic, TypeVar
T=TypeVar('T')
class B(Generic[T]):
    x=1
class make(B[int]): pass
""",
    "assigned method": """def f(self): return 1
class make:
    g = f
""",
    "object in a class attribute": """class P:
    def __init__(self,a): self.a=a
    def f(self): return 1
class make:
    p = P(3)
""",
    "descriptor": """class D:
    def __get__(self,o,t): return 1
    def __set__(self,o,v): pass
class make:
    p = D()
""",
    "non-data descriptor": """class D:
    def __get__(self,o,t): return 1
class make:
    p = D()
""",
    "nested class": """def h(): return 1
class make:
    class Inner:
        def f(self): return h()
""",
    "cached property and partial method": """from functools import partialmethod, cached_property
def h(): return 1
class make:
    def f(self,a): return h()
    g=partialmethod(f,3)
    @cached_property
    def c(self): return h()
""",
    "method with lru_cache": """from functools import lru_cache
def h(): return 1
class make:
    @lru_cache
    def f(self,a): return h()
""",
    "list of functions": """from functools import reduce
def a(x): return x+1
L=[a]
def make(w): return reduce(lambda y,f: f(y), L, w)
""",
    "context manager": """from contextlib import contextmanager
@contextmanager
def c():
    yield 1
def make(w):
    with c() as x: return x
""",
    "single dispatch": """from functools import singledispatch
@singledispatch
def f(x): return 1
@f.register
def _(x: int): return 3
def make(w): return f(w)
""",
    "class decorator that adds a method": """def deco(c):
    def forward(self): return 1
    c.forward=forward
    return c
@deco
class make:
    pass
""",
    "class as a decorator": """class deco:
    def __init__(self,f): self.f=f
    def __call__(self,w): return self.f(w)+1
@deco
def make(w): return w*2
""",
    "function in an if statement": """import sys
if sys.version_info>(3,0):
    def h(): return 1
else:
    def h(): return 5
def make(w): return h()
""",
    "flag and string enum": """from enum import Flag, StrEnum, auto
class A(Flag):
    X=auto()
    Y=auto()
    def f(self): return 3
class S(StrEnum):
    P='p'
    def f(self): return 7
D=A.X|A.Y
E=[S.P]
def make(w): return D.f(), E[0].f()
""",
    "ordered dict in a default": """from collections import OrderedDict
class C(OrderedDict):
    def f(self): return 1
def make(w,c=C(a=1)): return c.f()
""",
}
"""Modules with a factory ``make``."""

EDITS = [
    ("enum", "return 3", "return 4"),
    ("enum", "X=1", "X=2"),
    ("enum member in a default", "return 3", "return 4"),
    ("global enum member", "return 3", "return 4"),
    ("namedtuple", "= 3", "= 4"),
    ("namedtuple method", "return 1", "return 2"),
    ("dict subclass", "return 1", "return 2"),
    ("dict subclass", "a=2", "a=3"),
    ("int subclass", "return 1", "return 2"),
    ("dataclass instance", "d+1", "d+2"),
    ("dataclass instance", "C(d=4)", "C(d=6)"),
    ("attribute from __getattr__", "helper(): return 1", "helper(): return 2"),
    ("attribute from __getattr__", "self.x=1", "self.x=2"),
    ("generator and coroutine", "yield 1", "yield 2"),
    ("default of a nested lambda", "return 1", "return 2"),
    ("base class in a function", "x=1", "x=2"),
    ("generic base class", "x=1", "x=2"),
    ("assigned method", "return 1", "return 2"),
    ("object in a class attribute", "return 1", "return 2"),
    ("object in a class attribute", "P(3)", "P(4)"),
    ("descriptor", "return 1", "return 2"),
    ("non-data descriptor", "return 1", "return 2"),
    ("nested class", "return 1", "return 2"),
    ("cached property and partial method", "return 1", "return 2"),
    ("cached property and partial method", "f,3", "f,4"),
    ("method with lru_cache", "return 1", "return 2"),
    ("list of functions", "x+1", "x+2"),
    ("context manager", "yield 1", "yield 2"),
    ("single dispatch", "return 3", "return 4"),
    ("single dispatch", "return 1", "return 2"),
    ("class decorator that adds a method", "return 1", "return 2"),
    ("class as a decorator", "+1", "+2"),
    ("class as a decorator", "w*2", "w*3"),
    ("function in an if statement", "return 1", "return 2"),
    ("flag and string enum", "return 3", "return 4"),
    ("flag and string enum", "return 7", "return 4"),
    ("flag and string enum", "'p'", "'q'"),
    ("ordered dict in a default", "return 1", "return 2"),
    ("ordered dict in a default", "a=1", "a=2"),
]
"""(source, code, replacement): edits of code that the factory reaches."""

UNREACHED_EDITS = {
    "unused function": (
        """def z(): return 1
def make(w): return w+1
""",
        "return 1",
        "return 2",
    ),
    "local shadows global": (
        """z = 1
def make(w):
    z = w
    return z+1
""",
        "z = 1\n",
        "z = 2\n",
    ),
    "the type of an argument": (
        """class T:
    x=1
def make(w: T): return w+1
""",
        "x=1",
        "x=2",
    ),
}


@pytest.mark.parametrize(("kind", "old", "new"), EDITS)
def test_code_behind_every_kind_of_object_is_followed(package, kind, old, new):  # noqa: F811
    (package / "ownpkg_one.py").write_text(SOURCES[kind])
    before = identity("ownpkg_one:make")
    assert identity("ownpkg_one:make") == before
    edit(package, "ownpkg_one.py", old, new)
    assert identity("ownpkg_one:make") != before


@pytest.mark.parametrize("kind", UNREACHED_EDITS)
def test_unreachable_code_does_not_change_the_fingerprint(package, kind):  # noqa: F811
    text, old, new = UNREACHED_EDITS[kind]
    (package / "ownpkg_one.py").write_text(text)
    before = identity("ownpkg_one:make")
    edit(package, "ownpkg_one.py", old, new)
    assert identity("ownpkg_one:make") == before
