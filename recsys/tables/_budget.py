"""The error of a budget that a method cannot reach, and the search for the largest option that fits one."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["BudgetError", "largest_that_fits"]


class BudgetError(ValueError):
    """A number of bytes that a method cannot get down to.

    Args:
        message: what was asked for, of what, and what to do.
        minimum: the fewest bytes that are possible.

    Attributes:
        minimum: the fewest bytes that are possible.

    Example:
        >>> try:
        ...     raise BudgetError("budget is 8 bytes, at least 16 are needed", 16)
        ... except BudgetError as error:
        ...     print(error, error.minimum)
        budget is 8 bytes, at least 16 are needed 16
    """

    def __init__(self, message: str, minimum: int) -> None:
        super().__init__(message)
        self.minimum = int(minimum)

    def __reduce__(self) -> tuple[type[BudgetError], tuple[str, int]]:
        return type(self), (str(self), self.minimum)


def largest_that_fits(bytes_of: Callable[[int], int], nbytes: int, low: int, high: int, what: str) -> int:
    """The largest option from ``low`` to ``high`` whose bytes, which rise with it, are at most ``nbytes``.

    Args:
        bytes_of: bytes of an option.
        nbytes: the budget.
        low, high: the smallest and the largest option that make sense.
        what: the table, for the message.

    Raises:
        BudgetError: the smallest option does not fit.

    Example:
        >>> largest_that_fits(lambda rows: 4 * rows, 30, 1, 100, "a table")
        7
    """
    minimum = bytes_of(low)
    if minimum > nbytes:
        raise BudgetError(
            f"{what} needs at least {minimum} bytes, got a budget of {nbytes}; raise the budget or take another method",
            minimum,
        )
    while low < high:
        middle = (low + high + 1) // 2
        if bytes_of(middle) <= nbytes:
            low = middle
        else:
            high = middle - 1
    return low
