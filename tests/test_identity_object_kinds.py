"""Fingerprints follow code behind every kind of object: enums, named tuples, descriptors, wrappers, caches."""

import pytest
from user_package import edit, identity, package  # noqa: F401

REACHED = {
    "enum": (
        """from enum import Enum
class A(Enum):
    X=1
    def f(self): return 3
def make(w): return A.X.f()
""",
        "return 3",
        "return 4",
    ),
    "enum, X=1": (
        """from enum import Enum
class A(Enum):
    X=1
    def f(self): return 3
def make(w): return A.X.f()
""",
        "X=1",
        "X=2",
    ),
    "enum value in default": (
        """from enum import Enum
class A(Enum):
    X=1
    def f(self): return 3
def make(w,a=A.X): return a.f()
""",
        "return 3",
        "return 4",
    ),
    "global enum member": (
        """from enum import Enum
class A(Enum):
    X=1
    def f(self): return 3
D=A.X
def make(w): return D.f()
""",
        "return 3",
        "return 4",
    ),
    "namedtuple": (
        """from typing import NamedTuple
class C(NamedTuple):
    d: int = 3
D=C()
def make(w): return D.d
""",
        "= 3",
        "= 4",
    ),
    "namedtuple method": (
        """from typing import NamedTuple
class C(NamedTuple):
    d: int = 3
    def f(self): return 1
D=C()
def make(w): return D.f()
""",
        "return 1",
        "return 2",
    ),
    "dict subclass": (
        """class C(dict):
    def f(self): return 1
D=C(a=2)
def make(w): return D.f()
""",
        "return 1",
        "return 2",
    ),
    "dict subclass, a=2": (
        """class C(dict):
    def f(self): return 1
D=C(a=2)
def make(w): return D.f()
""",
        "a=2",
        "a=3",
    ),
    "int subclass": (
        """class C(int):
    def f(self): return 1
D=C(2)
def make(w): return D.f()
""",
        "return 1",
        "return 2",
    ),
    "dataclass instance attr": (
        """from dataclasses import dataclass
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
        "d+1",
        "d+2",
    ),
    "dataclass instance attr, C(d=4)": (
        """from dataclasses import dataclass
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
        "C(d=4)",
        "C(d=6)",
    ),
    "property on instance shadow": (
        """class C:
    def __init__(self): self.x=1
    def __getattr__(self,n): return helper()
def helper(): return 1
D=C()
def make(w): return D.zz
""",
        "helper(): return 1",
        "helper(): return 2",
    ),
    "property on instance shadow, self.x=1": (
        """class C:
    def __init__(self): self.x=1
    def __getattr__(self,n): return helper()
def helper(): return 1
D=C()
def make(w): return D.zz
""",
        "self.x=1",
        "self.x=2",
    ),
    "a generator and a coroutine": (
        """def h(x): yield 1
async def make(w):
    return [x for x in h(w)]
""",
        "yield 1",
        "yield 2",
    ),
    "nested lambda default": (
        """def h(x): return 1
def make(w):
    return (lambda y, f=h: f(y))(w)
""",
        "return 1",
        "return 2",
    ),
    "a base class in a function": (
        """class B:
    x=1
def make(w):
    class N(B):
        y=B
    return N
""",
        "x=1",
        "x=2",
    ),
    "typing Generic base": (
        """from typing import Generic, TypeVar
T=TypeVar('T')
class B(Generic[T]):
    x=1
class make(B[int]): pass
""",
        "x=1",
        "x=2",
    ),
    "assigned method": (
        """def f(self): return 1
class make:
    g = f
""",
        "return 1",
        "return 2",
    ),
    "class attr obj": (
        """class P:
    def __init__(self,a): self.a=a
    def f(self): return 1
class make:
    p = P(3)
""",
        "return 1",
        "return 2",
    ),
    "class attr obj, P(3)": (
        """class P:
    def __init__(self,a): self.a=a
    def f(self): return 1
class make:
    p = P(3)
""",
        "P(3)",
        "P(4)",
    ),
    "descriptor": (
        """class D:
    def __get__(self,o,t): return 1
    def __set__(self,o,v): pass
class make:
    p = D()
""",
        "return 1",
        "return 2",
    ),
    "non-data descriptor": (
        """class D:
    def __get__(self,o,t): return 1
class make:
    p = D()
""",
        "return 1",
        "return 2",
    ),
    "nested class": (
        """def h(): return 1
class make:
    class Inner:
        def f(self): return h()
""",
        "return 1",
        "return 2",
    ),
    "cached_property/partialmethod": (
        """from functools import partialmethod, cached_property
def h(): return 1
class make:
    def f(self,a): return h()
    g=partialmethod(f,3)
    @cached_property
    def c(self): return h()
""",
        "return 1",
        "return 2",
    ),
    "cached_property/partialmethod, f,3": (
        """from functools import partialmethod, cached_property
def h(): return 1
class make:
    def f(self,a): return h()
    g=partialmethod(f,3)
    @cached_property
    def c(self): return h()
""",
        "f,3",
        "f,4",
    ),
    "lru method": (
        """from functools import lru_cache
def h(): return 1
class make:
    @lru_cache
    def f(self,a): return h()
""",
        "return 1",
        "return 2",
    ),
    "a list of functions": (
        """from functools import reduce
def a(x): return x+1
L=[a]
def make(w): return reduce(lambda y,f: f(y), L, w)
""",
        "x+1",
        "x+2",
    ),
    "contextmanager": (
        """from contextlib import contextmanager
@contextmanager
def c():
    yield 1
def make(w):
    with c() as x: return x
""",
        "yield 1",
        "yield 2",
    ),
    "dispatch registration": (
        """from functools import singledispatch
@singledispatch
def f(x): return 1
@f.register
def _(x: int): return 3
def make(w): return f(w)
""",
        "return 3",
        "return 4",
    ),
    "dispatch registration, return 1": (
        """from functools import singledispatch
@singledispatch
def f(x): return 1
@f.register
def _(x: int): return 3
def make(w): return f(w)
""",
        "return 1",
        "return 2",
    ),
    "class decorator replaces": (
        """def deco(c):
    def forward(self): return 1
    c.forward=forward
    return c
@deco
class make:
    pass
""",
        "return 1",
        "return 2",
    ),
    "wrapper class decorator": (
        """class deco:
    def __init__(self,f): self.f=f
    def __call__(self,w): return self.f(w)+1
@deco
def make(w): return w*2
""",
        "+1",
        "+2",
    ),
    "wrapper class decorator, w*2": (
        """class deco:
    def __init__(self,f): self.f=f
    def __call__(self,w): return self.f(w)+1
@deco
def make(w): return w*2
""",
        "w*2",
        "w*3",
    ),
    "if TYPE_CHECKING/else version": (
        """import sys
if sys.version_info>(3,0):
    def h(): return 1
else:
    def h(): return 5
def make(w): return h()
""",
        "return 1",
        "return 2",
    ),
    "flag enum": (
        """from enum import Flag, StrEnum, auto
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
        "return 3",
        "return 4",
    ),
    "flag enum, return 7": (
        """from enum import Flag, StrEnum, auto
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
        "return 7",
        "return 4",
    ),
    "flag enum, 'p'": (
        """from enum import Flag, StrEnum, auto
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
        "'p'",
        "'q'",
    ),
    "ordered dict subclass in kwargs default": (
        """from collections import OrderedDict
class C(OrderedDict):
    def f(self): return 1
def make(w,c=C(a=1)): return c.f()
""",
        "return 1",
        "return 2",
    ),
    "ordered dict subclass in kwargs default, a=1": (
        """from collections import OrderedDict
class C(OrderedDict):
    def f(self): return 1
def make(w,c=C(a=1)): return c.f()
""",
        "a=1",
        "a=2",
    ),
}

NOT_REACHED = {
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


@pytest.mark.parametrize("kind", REACHED)
def test_code_behind_every_kind_of_object_is_followed(package, kind):  # noqa: F811
    text, old, new = REACHED[kind]
    (package / "ownpkg_one.py").write_text(text)
    before = identity("ownpkg_one:make")
    assert identity("ownpkg_one:make") == before
    edit(package, "ownpkg_one.py", old, new)
    assert identity("ownpkg_one:make") != before


@pytest.mark.parametrize("kind", NOT_REACHED)
def test_unreachable_code_does_not_change_the_fingerprint(package, kind):  # noqa: F811
    text, old, new = NOT_REACHED[kind]
    (package / "ownpkg_one.py").write_text(text)
    before = identity("ownpkg_one:make")
    edit(package, "ownpkg_one.py", old, new)
    assert identity("ownpkg_one:make") == before
