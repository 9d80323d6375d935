"""Damage to the bytes of a file, drawn by a `random.Random`."""


def flip(rng, data):
    """Write other bytes into some places."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 50])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def cut(rng, data):
    """End it early."""
    return data[: rng.randrange(len(data))]


def hole(rng, data):
    """Leave a short stretch out."""
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 300) :]


def repeat(rng, data):
    """Have a short stretch stand twice."""
    start = rng.randrange(len(data))
    return data[:start] + data[start : start + rng.randrange(1, 300)] + data[start:]
