"""Plan, run and fit scaling-law experiments out of interchangeable plugins.

Importing this package discovers no plugin and imports none of its modules. Each public name is loaded on first
use; ``__init__.pyi`` lists them. Names for plugin authors are in ``flops_fit_core.plugins``.
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
