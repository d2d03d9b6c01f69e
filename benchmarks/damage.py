"""Damage to sound data and files, drawn from a random generator."""

import math
from copy import deepcopy
from random import Random
from typing import Any

ODD_NUMBERS = (
    0, 1, -1, 2, 7, 2**31, 2**63, -(2**63), 10**400, 0.0, -0.0, 0.5, 1e-320, 1e308, math.nan, math.inf, -math.inf,
)  # fmt: skip
ODD_TEXTS = (
    "", "a", "0", "None", "../x.png", "/etc/passwd", "C:\\x.png", "\0", "\ud800", "图像", "\x1b[31m", "x" * 5000,
)  # fmt: skip
ODD_LISTS = (
    [], [[]], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5], ["1", 2, 3, 4], [0, 0, 0, 0], [-5, -5, 1e9, 1e9],
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (None, True, False, *ODD_NUMBERS, *ODD_TEXTS, *ODD_LISTS, {}, {"id": 1})


def damage_value(value: Any, random: Random) -> Any:
    """Return `value` (plain data) with one thing in it replaced, removed, doubled, moved or nested."""
    if isinstance(value, list | dict) and value and random.random() < 0.95:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = random.choice(keys)
        value[key] = damage_value(value[key], random)
        return value
    if isinstance(value, float) and random.random() < 0.7:
        return random.choice((value * random.uniform(-2, 5), value + random.uniform(-60, 60)))
    way = random.randrange(6)
    if way == 0 and isinstance(value, list) and value:
        value.append(random.choice(value))
    elif way == 1 and isinstance(value, list | dict) and value:
        value.pop(random.choice(list(value))) if isinstance(value, dict) else value.pop()
    elif way == 2 and isinstance(value, list):
        random.shuffle(value)
    elif way == 3 and isinstance(value, int | float):
        return value * random.choice((-1, 0, 10, 10**6))
    elif way == 4:
        return nested(value, random.randrange(1, 2000))
    else:
        return deepcopy(random.choice(ODD_VALUES))
    return value


def nested(value: Any, depth: int) -> Any:
    """Return `value` in so many lists."""
    for _ in range(depth):
        value = [value]
    return value


def damage_bytes(content: bytes, random: Random) -> bytes:
    """Return `content` cut off, or with a few bytes changed."""
    if random.random() < 0.3:
        return content[: random.randrange(len(content) + 1)]
    changed = bytearray(content)
    for _ in range(random.randrange(1, 8)):
        if changed:
            changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)
