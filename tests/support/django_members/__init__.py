"""A Django app whose users have UUIDs."""
