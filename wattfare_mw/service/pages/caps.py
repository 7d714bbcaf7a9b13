"""The form field *Monthly cap*."""

from __future__ import annotations

import re
from decimal import Decimal

from ... import money
from ...errors import invalid_request

#: The names of the text field and of the box beside it.
CAP = "cap"
UNLIMITED = "unlimited"
_AMOUNT = re.compile(r"\$?\s*([0-9]{1,10}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})", re.ASCII)


def read_cap(form: dict[str, str]) -> int | None:
    """The cap from the form, in nano-dollars; None if the box for no cap is checked.

    Raises:
        WattfareError: ``invalid_request``, with a message for the person.
    """
    if UNLIMITED in form:
        return None
    found = _AMOUNT.fullmatch(form.get(CAP, "").strip())
    if found is None:
        raise invalid_request("Enter the monthly cap in USD with a decimal point, such as 12.50.")
    cap = Decimal(found[1])
    if cap > money.MAX_CAP_USD:
        raise invalid_request(f"The monthly cap can be at most ${money.MAX_CAP_USD:,}.")
    return money.cap_nanos(cap)


def written(cap: int | None) -> str:
    """A cap as the text field shows it, such as ``12.50``; empty for no cap."""
    if cap is None:
        return ""
    text = f"{money.usd(cap):f}"
    whole, _, decimals = text.partition(".")
    return f"{whole}.{decimals:0<2}"
