"""Job -> results: what a worker does. The only room with modules that import torch when they are imported.

Names are loaded when they are first asked for, so that a driver, which never trains, imports no torch.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
