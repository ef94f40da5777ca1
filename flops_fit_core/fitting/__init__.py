"""The statistics: from trained models to a law, its intervals, and the optimum for a budget.

Usable on its own, on runs that anybody trained anywhere. Names are loaded when first asked for, so that
importing this package imports no numpy and no scipy.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
