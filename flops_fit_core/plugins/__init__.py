"""Everything a plugin author needs, and the code that finds plugins.

Options, specs, hookspecs and the protocols of the objects that plugins build. The registry finds plugins through
their entry points, checks the specs they return and resolves names.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
