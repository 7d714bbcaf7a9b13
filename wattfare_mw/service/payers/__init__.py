"""People who pay: their passkeys and sign-ins, what they approve, and what they pay with."""
