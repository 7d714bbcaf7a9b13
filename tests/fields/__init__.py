"""The list of fields in ``docs/requests.md``, from the table of the service."""
