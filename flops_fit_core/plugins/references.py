"""Values of environment variables in an experiment: text, or a reference to a variable of the worker."""

from __future__ import annotations

import os
import socket
from typing import Annotated

from pydantic import Field

from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.options import Table


class FromEnv(Table):
    """A reference to an environment variable: ``{from_env = "API_TOKEN"}``. Records hold its name only."""

    from_env: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
    """Name of the variable in the environment of the worker."""


class LiteralText(Table):
    """Text that is stored as it is, although it looks like a secret: ``{literal = "..."}``."""

    literal: str


EnvironmentValue = str | FromEnv | LiteralText
"""Type of the value of an environment variable: ``dict[str, EnvironmentValue]`` for a table of them."""


def resolve_value(value: EnvironmentValue, option: str) -> str:
    """The text of a value. Call it in the process that uses the text, never store the result.

    Args:
        value: Text, or a reference.
        option: The option, for messages: ``trainer.environment.API_TOKEN``.

    Raises ConfigError if the variable is not set in this process.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, LiteralText):
        return value.literal
    try:
        return os.environ[value.from_env]
    except KeyError:
        raise ConfigError(
            f"{option}: the environment variable {value.from_env} is not set in the process that needs it, on "
            f"{socket.gethostname()}. Set it there before you start flops-fit: export {value.from_env}=..."
        ) from None
