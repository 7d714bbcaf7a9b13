"""An app for Django whose users have UUIDs."""
