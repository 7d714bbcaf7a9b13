"""The people who pay: who they are, and what they pay with."""
