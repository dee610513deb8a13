"""Workflows as nobody writes them, for the tests and for `benchmarks/reliability.py`."""

import random


def mutated(value: object, rng: random.Random) -> object:
    """A workflow with one thing in it changed."""
    odd = [
        None,
        -1,
        1.5,
        10**400,
        float("inf"),
        "x\x1b[2J\n",
        [],
        {},
        [[[]]],
        True,
        "a" * 3000,
        {"__value__": []},
    ]
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: mutated(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        at = rng.randrange(len(value))
        return [*value[:at], mutated(value[at], rng), *value[at + 1 :]]
    return rng.choice(odd)
