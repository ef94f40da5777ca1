"""Tasks and token windows.

A task is the demand that a dataset makes on a model: the form of inputs and outputs, and the loss. Token windows
cut rows of tokens into training samples in a computed order.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
