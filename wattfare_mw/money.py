"""Private: caps and amounts. The code calculates with integers of nano-dollars, and its interfaces
use exact decimals. It never uses floats.

This module checks all numbers from people, apps and the network before any arithmetic.
``Decimal("1e999999999")`` is a valid number, but adding one to it would use all memory.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal, InvalidOperation

from .errors import invalid_request

#: One US dollar in nano-dollars.
NANOS_PER_USD = 10**9
#: The largest cap that can be set, in USD.
MAX_CAP_USD = 10**9
#: The largest amount that is accepted from the network, in USD.
MAX_AMOUNT_USD = 10**12

# An amount may have any number of digits. Digits beyond this precision are rounded in the direction
# of the context.
_UP = Context(prec=80, rounding=ROUND_CEILING)
_DOWN = Context(prec=80, rounding=ROUND_FLOOR)
_ONE = Decimal(1)
_NANO_PLACES = 9
#: A price is rounded up to this many decimal places of a dollar. No real price has more.
_MOST_PLACES = 50

Number = int | float | Decimal
"""What an app may pass as an amount of USD."""


class Usd(Decimal):
    """A checked amount in US dollars: finite, from 0 to 10¹². It behaves like a Decimal."""

    __slots__ = ()


def amount(value: object, *, most: int = MAX_AMOUNT_USD) -> Usd:
    """Convert ``value`` to an exact amount of USD.

    Raises:
        ValueError: it is not a number, not finite, negative, or above ``most``.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise ValueError(f"an amount in USD must be a number, not {type(value).__name__}")
    # A float means its shortest repr: 0.1 is exactly a tenth.
    number = Decimal(repr(float(value)) if isinstance(value, float) else value)
    if not number:
        return Usd(0)  # without the sign and the exponent of a zero
    # `adjusted` gives the magnitude without arithmetic, so the exact comparison stays cheap.
    if not number.is_finite() or number < 0 or number.adjusted() > 18 or number > most:
        raise ValueError(f"an amount in USD must be a finite number from 0 to {most:,}")
    return Usd(number)


def cap_nanos(value: object) -> int | None:
    """Convert a cap to nano-dollars. None means no cap, and is returned as None. The cap is rounded
    down, so that it never exceeds the given amount.

    Raises:
        WattfareError: ``invalid_request``; it is not a finite number from 0 to 10⁹ USD.
    """
    if value is None:
        return None
    try:
        return nanos_floor(amount(value, most=MAX_CAP_USD))
    except ValueError:
        raise invalid_request(
            "A monthly cap must be a finite number of USD from 0 to 1,000,000,000, such as 20. To"
            " set no cap, leave it out."
        ) from None


def cap_usd(value: object) -> Usd | None:
    """A cap in USD, as the protocol has it. It is rounded like :func:`cap_nanos`."""
    nanos = cap_nanos(value)
    return None if nanos is None else usd(nanos)


def usd(nanos: int) -> Usd:
    """Convert nano-dollars to USD exactly, with as few digits as possible."""
    whole, rest = divmod(nanos, NANOS_PER_USD)
    return Usd(f"{whole}.{rest:09d}".rstrip("0").rstrip("."))


def dollars(nanos: int, *, up: bool) -> str:
    """Nano-dollars as text for people, such as ``$0.04``. The text has two decimal places. Small
    amounts have more, for two significant digits.

    Args:
        up: True to round up, False to round down.
    """
    places = max(2, _NANO_PLACES + 2 - len(str(nanos))) if nanos < NANOS_PER_USD else 2
    unit = 10 ** max(_NANO_PLACES - places, 0)
    whole, rest = divmod((-(-nanos // unit) if up else nanos // unit) * unit, NANOS_PER_USD)
    decimals = f"{rest:09d}".rstrip("0")
    return f"${whole:,}.{decimals:0<2}"


def nanos_floor(value: Decimal) -> int:
    """A checked amount in USD as nano-dollars, rounded down."""
    return _nanos(value, _DOWN)


def nanos_ceil(value: Decimal) -> int:
    """A checked amount in USD as nano-dollars, rounded up. The cost of a call is rounded only once,
    at the end of the calculation, in favor of the operator."""
    return _nanos(value, _UP)


def in_whole_units(
    prices: dict[str, Decimal], factor: Decimal = _ONE
) -> tuple[int, dict[str, int]]:
    """Prices as whole numbers of a common unit, so that sums of them are exact integers.

    Args:
        prices: checked amounts, in USD.
        factor: a factor for each price, from 0 to 1.

    Returns:
        How many units a nano-dollar has, and the prices in units.
    """
    if factor != _ONE:
        prices = {name: _UP.multiply(price, factor) for name, price in prices.items()}
    finest = min(int(price.as_tuple().exponent) for price in prices.values())
    places = min(max(-finest, _NANO_PLACES), _MOST_PLACES)
    return 10 ** (places - _NANO_PLACES), {
        name: _units(price, places) for name, price in prices.items()
    }


def _units(price: Decimal, places: int) -> int:
    if price and price.adjusted() < -places:  # smaller than the smallest unit: round up
        return 1
    return _whole(_UP.scaleb(price, places), _UP)


def _nanos(value: Decimal, context: Context) -> int:
    if value and value.adjusted() < -60:  # extremely small: round up
        return 0 if context is _DOWN else 1
    try:
        nanos = context.scaleb(value, _NANO_PLACES)
        return int(nanos.to_integral_value(context.rounding))
    except InvalidOperation:
        raise ValueError("not a finite amount") from None


def _whole(value: Decimal, context: Context) -> int:
    return int(value.to_integral_value(context.rounding))
