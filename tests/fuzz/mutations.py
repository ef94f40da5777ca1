"""Random changes of valid inputs: of bytes, and of JSON values."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

TOKENS: tuple[bytes, ...] = (
    *(b"", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\x1b[31m", b"\r\n", b"\t", b'"', b"'", b"\\", b","),
    *(b"[", b"]", b"{", b"}", b"[[", b"]]", b"=", b":", b"&a ", b"*a", b"!!python/name:os.system", b"#", b"- "),
    *(b"nan", b"inf", b"-1", b"0", b"1e400", b"1e-400", b"9" * 40, b"null", b"true", b"[" * 200, b"{" * 200),
    *(b"params", b"tokens", b"loss", b"flops", b"name", b"sweep", b"budgets", b"sizes", b"../../etc/passwd"),
    *("é".encode(), "\u202e".encode(), "\ud800".encode("utf-8", "surrogatepass"), b"PK\x03\x04", b"PAR1"),
    *(b"!!int ''", b"10^400", b" " * 100, "\u2028".encode(), "\u0085".encode()),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**63, -(2**70), 10**400, 0.0, -0.0, 1e308, 5e-324, float("nan"), float("inf")),
    *("", "x", "\x00", "\x1b[2J", "\ud800", "1e9", "nan", "../..", "a" * 5000, "surface", "gpt", "sgd"),
    *([], {}, [[]], [None], {"name": "surface"}, {"": 1}, [1, "a"], {"name": None}),
)


DEEP = "a value inside 4,000 others"
"""Stands for a deeply nested value, which ``json.dumps`` cannot write."""


def mutate_bytes(data: bytes, seed: int, edits: int, others: Sequence[bytes] = ()) -> bytes:
    """The data after this many random edits. The seed determines the edits."""
    rng = random.Random(seed)
    result = bytearray(data)
    for _ in range(edits):
        _edit(result, rng, others)
    return bytes(result)


def _edit(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    start = rng.randrange(len(data) + 1)
    stop = min(len(data), start + int(2 ** rng.uniform(0, 8)))
    action = rng.randrange(8)
    if action == 0 and start < len(data):
        data[start] ^= 1 << rng.randrange(8)
    elif action == 1 and start < len(data):
        data[start] = rng.randrange(256)
    elif action in (2, 3):
        data[start:start] = rng.choice(TOKENS)
    elif action == 4:
        del data[start:stop]
    elif action == 5:
        data[start:start] = data[start:stop] * rng.choice((1, 2, 20))
    elif action == 6:
        del data[start:]
    elif others:
        other = rng.choice(others)
        begin = rng.randrange(len(other) + 1)
        data[start:stop] = other[begin : begin + (stop - start)]


def mutate_json(data: bytes, seed: int, edits: int) -> bytes:
    """A JSON text after this many random edits of its values. The seed determines the edits."""
    rng = random.Random(seed)
    value = json.loads(data)
    if isinstance(value, dict) and rng.random() < 0.7:
        value.pop("sha256", None)  # an edited value has another checksum, and its reader stops there
    for _ in range(edits):
        value = _edit_value(value, rng)
    text = json.dumps(value).encode("utf-8", "surrogatepass")
    return text.replace(json.dumps(DEEP).encode(), b'{"a":[' * 2000 + b"1" + b"]}" * 2000)


def _edit_value(value: Any, rng: random.Random) -> Any:
    containers: list[Any] = []
    queue = [value]
    while queue:
        item = queue.pop()
        if isinstance(item, dict | list):
            containers.append(item)
            queue += item.values() if isinstance(item, dict) else item
    containers = [item for item in containers if item]
    if not containers or rng.random() < 0.02:
        return copy.deepcopy(rng.choice(VALUES))
    container = rng.choice(containers)
    key = rng.choice(list(container)) if isinstance(container, dict) else rng.randrange(len(container))
    action = rng.randrange(6)
    if action <= 2:
        container[key] = copy.deepcopy(rng.choice(VALUES))
    elif action == 3:
        del container[key]
    elif action == 4:
        container[key] = rng.choice((DEEP, _nested(copy.deepcopy(rng.choice(VALUES)), rng.choice((1, 3, 100)))))
    elif isinstance(container, dict):
        container[rng.choice(("", "name", "size", "\x00", "sha256", f"{key}x"))] = copy.deepcopy(container[key])
    else:
        container.append(copy.deepcopy(container[key]))
    return value


def _nested(value: Any, depth: int) -> Any:
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value
