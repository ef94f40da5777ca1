"""Training: turns a job into results, in a worker process.

``loop.py`` shows how a run is trained. This is the only room whose modules import torch at module level. The names
below are loaded on first use, so that the driver, which never trains, does not import torch.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
