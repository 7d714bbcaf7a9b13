"""The list of fields in ``docs/requests.md``, from the service's table."""
