"""How to handle each error.

python examples/handling_errors.py
"""

import logging

from wattfare_mw import (
    Wattfare,
    WattfareAuthError,
    WattfareBudgetExceededError,
    WattfareError,
    WattfareFundingError,
    WattfareNetworkError,
    WattfareNotConnectedError,
    WattfareRateLimitError,
)


def answer(wf: Wattfare, user_id: str, prompt: str) -> str:
    try:
        return wf.user(user_id).model("wattfare/echo").generate(prompt, max_tokens=50).text
    except WattfareNotConnectedError:
        return "Connect a budget."  # expected on the first call
    except WattfareFundingError:
        return "Connect your budget again."
    except WattfareBudgetExceededError as error:
        return f"{error.message} Raise the cap?"
    except WattfareRateLimitError as error:
        return f"Try again in {error.retry_after or 1:.0f} s."
    except WattfareNetworkError:
        return "Try again later."
    except WattfareAuthError:
        logging.exception("our secret key is refused")  # not the user's fault
        return "Something is wrong here."
    except WattfareError as error:  # invalid_request, upstream, unknown
        return f"{error.code}: {error.message}"


with Wattfare() as wf:
    print(answer(wf, "user_123", "Say hello."))
    print(answer(wf, "never seen", "Say hello."))
    print(answer(wf, "user_123", "word " * 1_000_000))  # costs more than the budget
