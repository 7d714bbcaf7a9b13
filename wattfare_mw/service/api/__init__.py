"""The HTTP API: routes by topic, credentials, rates, and what every response shares."""
