"""The app for ``INSTALLED_APPS``. It registers the checks of ``manage.py check``."""

# Django has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from django.apps import AppConfig
from django.core.checks import register


class WattfareConfig(AppConfig):
    """``INSTALLED_APPS = [..., "wattfare_django"]``."""

    name = "wattfare_django"
    verbose_name = "Wattfare"

    def ready(self) -> None:
        """Register the checks."""
        from .checks import check_middleware, check_setting

        register(check_setting)
        register(check_middleware)
