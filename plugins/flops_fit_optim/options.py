"""Types of options that several optimizers share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Rate = Annotated[float, Field(gt=0)]
"""A learning rate, or a factor of one."""
Decay = Annotated[float, Field(ge=0)]
"""Weight decay."""
Momentum = Annotated[float, Field(ge=0, lt=1)]
"""Share of a running average that a step keeps."""
