"""Payers: their passkeys, sign-ins, approvals and funding."""
