"""Statistics: from runs to a law, its intervals, and the optimum for a budget.

Works without the rest of the package, on runs trained with any software. Names are loaded on first use, so
importing this package imports neither numpy nor scipy.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
