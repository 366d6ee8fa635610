"""Amounts as people read them."""

DECIMAL, BINARY = ("B", "kB", "MB", "GB", "TB"), ("B", "KiB", "MiB", "GiB", "TiB")


def size(count: float, binary: bool = False) -> str:
    """`"532 B"`, `"3.24 MB"`, `"15.29 GB"`: three digits or more, in the unit that suits the number.

    Args:
        count: bytes.
        binary: in powers of 1024, as memory is measured: `"1.50 GiB"`.
    """
    step, units = (1024, BINARY) if binary else (1000, DECIMAL)
    power = 0
    while round(abs(count), 2) >= step and power < len(units) - 1:
        count, power = count / step, power + 1
    return f"{count:.{2 if power else 0}f} {units[power]}"


def counted(number: int, noun: str) -> str:
    """`"1 episode"`, `"1,200 episodes"`, of a noun in the singular."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
