"""The list of fields in ``docs/service.md``, from the table of the service."""
