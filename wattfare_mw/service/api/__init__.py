"""The HTTP API: routes by topic, credentials, rate limits, and the shared parts of responses."""
