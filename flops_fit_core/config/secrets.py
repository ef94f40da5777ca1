"""Finds secrets in an experiment before they are stored. A study's folder is often shared.

By names, by known prefixes and by passwords in URLs; never by entropy, which refuses hashes and names of files.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from flops_fit_core.errors import ConfigError

_SECRET_WORDS = {"secret", "passphrase", "apikey", "credential", "credentials"}
_SECRET_KEYS = {"api", "access", "secret", "private", "auth", "account"}
"""Words before ``key``."""
_TEXT_TOKENS = {
    *("pad", "bos", "eos", "sos", "eot", "eod", "unk", "unknown", "mask", "cls", "sep", "separator", "special"),
    *("start", "end", "stop", "begin", "boundary", "delimiter", "next", "previous", "first", "last", "single"),
    *("new", "extra", "target", "text", "word", "class", "newline", "space", "padding", "image", "audio", "video"),
    *("prompt", "system", "user", "assistant", "think", "tool", "register", "each", "per", "by", "max", "min"),
    *("num",),
}
"""Words before ``token`` that make it a token of text."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_KNOWN = re.compile(
    r"""(?<![A-Za-z0-9_-])(?:
        hf_(?:[A-Za-z0-9]{16,}|(?=[A-Za-z]*\d)[A-Za-z0-9]{8,})
      | sk-(?:[A-Za-z0-9_-]{16,}|(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{8,})
      | gh[pousr]_[A-Za-z0-9]{8,}
      | github_pat_[A-Za-z0-9_]{8,}
      | (?:AKIA|ASIA)[A-Z0-9]{12,}
      | xox[abeoprs]-[A-Za-z0-9-]{8,}
      | glpat-[A-Za-z0-9_-]{8,}
      | AIza[A-Za-z0-9_-]{30,}
      | sk_live_[A-Za-z0-9]{8,}
      | eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}
    )|-----BEGIN[ A-Z]*PRIVATE\ KEY-----.*""",
    re.VERBOSE | re.DOTALL,
)
_URL_PASSWORD = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s:@?#]*:([^/\s@]+)@")
_FLAG = re.compile(r"(?:^|\s)--?([A-Za-z][\w-]*)(?:=|\s+)('[^']*'|\"[^\"]*\"|[^\s-]\S*)")
"""``--name value``, ``--name=value``."""
_ASSIGNMENT = re.compile(r"(?:^|[\s?&'\"])([A-Za-z_]\w*)=(?=('[^']*'|\"[^\"]*\"|[^\s&]+))")
"""``NAME=value``, ``?name=value``."""
_PLACEHOLDER = re.compile(r"\{[^{}]*\}|\$\w+|\$\{\w+\}|\*+|<.*>|\[\w+\]")
_REFERENCES = ({"from_env"}, {"literal"})
"""Keys of the tables that replace a text: a reference, and a text that is no secret."""
_HARMLESS = re.compile(r"[\d.,+-]*|true|false|yes|no|none|null|auto", re.IGNORECASE)


def refuse_secrets(data: Mapping[str, Any], origin: str) -> None:
    """Raises ConfigError for secrets in an experiment. The message has their keys, not their values.

    Args:
        data: An experiment as plain data.
        origin: Its file, for the message.
    """
    secrets = [line for key, value in data.items() for line in _search(value, str(key), str(key))]
    if not secrets:
        return
    lines = "\n".join(dict.fromkeys(secrets))
    raise ConfigError(
        f"{origin}:\n{lines}\n"
        "The study's folder stores the experiment, so it must not contain secrets. In trainer.environment and in "
        'env_vars, write {from_env = "NAME"} to read the variable NAME where the run is trained, or '
        '{literal = "..."} if the text is no secret. Programs and libraries can read other secrets from such a '
        "variable, or from their own configuration"
    )


def mask_secrets(value: Any, name: str = "") -> Any:
    """The value with ``***`` in place of each secret, for messages about older studies.

    ``name`` is the option or variable that has the value. A ``{literal = ...}`` is no secret.
    """
    if isinstance(value, Mapping):
        if set(value) in _REFERENCES:
            return value
        return {key: mask_secrets(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        flags = ["", *(item if isinstance(item, str) and item.startswith("-") else "" for item in value)]
        return [mask_secrets(item, flag or name) for flag, item in zip(flags, value, strict=False)]
    if not isinstance(value, str):
        return value
    if is_secret_name(name) and _may_be_secret(value):
        return "***"
    shown, end = "", 0
    for _, (first, last) in sorted(_in_text(value), key=lambda secret: secret[1]):
        if first >= end:
            shown += f"{value[end:first]}***"
        end = max(end, last)
    return shown + value[end:]


def _search(value: Any, key: str, name: str) -> Iterator[str]:
    """A line per secret in the value of this key; ``name`` is the last part of the key that is a name."""
    if isinstance(value, Mapping):
        if set(value) == {"from_env"}:
            yield from _lines(str(value["from_env"]), f"{key}.from_env")
        if set(value) in _REFERENCES:
            return
        for part, item in value.items():
            yield from _search(item, f"{key}.{part}", str(part))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _search(item, f"{key}.{index}", name)
        if len(value) > 1 and all(isinstance(item, str) for item in value):
            yield from _lines(shlex.join(value), key)
    elif isinstance(value, str):
        if is_secret_name(name) and _may_be_secret(value):
            yield f"  {key}: its name is that of a secret"
        yield from _lines(value, key)


def _lines(text: str, key: str) -> Iterator[str]:
    yield from (f"  {key}: has {form}" for form, _ in _in_text(text))


def _in_text(text: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """The form of each secret in a text, and its first and last position."""
    yield from (("the form of a key of a service", match.span()) for match in _KNOWN.finditer(text))
    for match in _URL_PASSWORD.finditer(text):
        if not _PLACEHOLDER.fullmatch(match[1]):
            yield "a password in a URL", match.span(1)
    for match in (*_FLAG.finditer(text), *_ASSIGNMENT.finditer(text)):
        if is_secret_name(match[1]) and _may_be_secret(match[2].strip("'\"")):
            yield f"a secret after {match[1]}", match.span(2)


def is_secret_name(name: str) -> bool:
    """Whether an option or a variable of this name has a secret: ``API_TOKEN``, ``dbPassword``, ``--api-key``.

    Names of tokens of text (``pad_token``, ``max_tokens``, ``tokenizer``) and of files (``token_file``) have none.
    """
    words = [word.lower() for word in _WORD.findall(name)]
    if not words:
        return False
    *before, last = words
    previous = before[-1] if before else ""
    if last == "key":
        return previous in _SECRET_KEYS
    if last == "token":
        return previous not in _TEXT_TOKENS and not previous.isdigit()
    return last in _SECRET_WORDS or last.endswith(("password", "passwd"))


def _may_be_secret(text: str) -> bool:
    """False for numbers, words such as ``none``, placeholders and paths of files."""
    is_path = text.startswith(("/", "./", "../", "~"))
    return not (is_path or _HARMLESS.fullmatch(text) or _PLACEHOLDER.fullmatch(text))
