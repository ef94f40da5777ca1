"""Fingerprints follow code that is reached by computed names: getattr, eval, importlib, registries, subclasses."""

import pytest
from user_package import edit, identity, package  # noqa: F401

COMPUTED = {
    "getattr of a module": """
import ownpkg.layers as layers
def make(width, name="Block"):
    return getattr(layers, name)(width)
""",
    "a module as an argument": """
import ownpkg.layers as layers
def build(module, width):
    return module.Block(width)
def make(width):
    return build(layers, width)
""",
    "import_module": """
import importlib
def make(width, name="Block"):
    return getattr(importlib.import_module(f"{__package__}.layers"), name)(width)
""",
    "__import__": """
def make(width):
    return __import__("ownpkg.layers").layers.Block(width)
""",
    "sys.modules": """
import sys
import ownpkg.layers
def make(width):
    return sys.modules["ownpkg.layers"].Block(width)
""",
    "a star import": """
from ownpkg.layers import *
def make(width):
    return Block(width)
""",
    "globals": """
from ownpkg.layers import Block
def make(width):
    return globals()["Block"](width)
""",
    "eval": """
from ownpkg.layers import Block
def make(width):
    return eval("Block")(width)
""",
    "a list of classes": """
from ownpkg.layers import Block, Unused
KINDS = [(Unused, {}), (Block, {"width": 4})]
def make(width):
    return KINDS[1][0](width)
""",
    "subclasses": """
from ownpkg.base import Base
import ownpkg.layers
def make(width):
    return Base.__subclasses__()[0](width)
""",
    "subclasses of a class method's class": """
class Kind:
    @classmethod
    def named(cls, name):
        return next(kind for kind in cls.__subclasses__() if kind.__name__ == name)
class Small(Kind):
    def forward(self, x):
        return squared(x)
def squared(x): return x.relu().square()
def make(width):
    return Kind.named("Small")
""",
    "an instance's method": """
from ownpkg.layers import Block
class Maker:
    def __init__(self, kind): self.kind = kind
    def make(self, width): return self.kind(width)
make = Maker(Block).make
""",
    "__init_subclass__": """
class Kind:
    registry = {}
    def __init_subclass__(cls, **kwargs):
        Kind.registry[cls.__name__] = cls
class Small(Kind):
    def forward(self, x): return x.relu().square()
def make(width):
    return Kind.registry["Small"]()
""",
    "a registry object": """
class Registry:
    def __init__(self): self.kinds = {}
    def register(self, kind):
        self.kinds[kind.__name__] = kind
        return kind
MODELS = Registry()
@MODELS.register
class Small:
    def forward(self, x): return x.relu().square()
def make(width):
    return MODELS.kinds["Small"]()
""",
    "a metaclass": """
class Meta(type):
    def __call__(cls, *args): return cls.relu_squared(*args)
    def relu_squared(cls, x): return x.relu().square()
class make(metaclass=Meta): pass
""",
    "an attribute set from outside": """
from ownpkg.base import Base
def forward(self, x): return x.relu().square()
Base.forward = forward
def make(width): return Base()
""",
    "a function in a closure": """
import ownpkg.layers as layers
def outer():
    def inner(width): return layers.Block(width)
    return inner
make = outer()
""",
    "a module in a closure": """
def outer():
    import ownpkg.layers as layers
    def inner(width): return layers.Block(width)
    return inner
make = outer()
""",
    "pydantic": """
from pydantic import BaseModel, Field
from ownpkg.layers import squared_relu
def act(): return squared_relu
class Config(BaseModel):
    act: object = Field(default_factory=act)
def make(width): return Config().act
""",
    "pydantic, by the type of a field": """
from pydantic import BaseModel
from ownpkg.layers import squared_relu
class Inner(BaseModel):
    def act(self): return squared_relu
class Config(BaseModel):
    inner: Inner | None = None
def make(width): return Config(inner={})
""",
    "try and except": """
try:
    from ownpkg_missing import Block
except ImportError:
    from ownpkg.layers import Block
def make(width): return Block(width)
""",
    "a function in a library's object": """
from collections import UserString
def jit(function):
    kernel = UserString("kernel")
    kernel.run = function
    del kernel.run
    return kernel
@jit
def kernel(x): return helper(x)
def helper(x): return x.relu().square()
def make(width): return kernel[width]
""",
    "an object that does not show what it holds": """
import weakref
def build(): return helper
def helper(x): return x.relu().square()
TABLE = weakref.ref(build)
def make(width): return TABLE
""",
    "an object that holds itself": """
TABLE = {"helper": lambda x: x.relu().square()}
TABLE["self"] = TABLE
def make(width): return TABLE
""",
    "a dict and a place": """
import os
PARTS = {"act": lambda x: x.relu().square(), "data": os.path.abspath("data")}
def make(width): return PARTS["act"]
""",
    "an exported attribute of the package": """
import ownpkg
def make(width): return ownpkg.model.L.Block(width)
""",
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_code_behind_a_computed_name_is_followed(package, kind):  # noqa: F811
    (package / "ownpkg" / "root.py").write_text(COMPUTED[kind])
    before = identity("ownpkg.root:make")
    assert identity("ownpkg.root:make") == before
    where = "root.py" if "x.relu().square()" in COMPUTED[kind] else "layers.py"
    edit(package, f"ownpkg/{where}", "x.relu().square()", "x.relu()")
    assert identity("ownpkg.root:make") != before
