"""People who pay: their passkeys, recovery codes and sign-ins, and what they approve."""
