"""The users."""

from __future__ import annotations

import uuid

from django.contrib.auth.models import AbstractUser
from django.db import models


class Member(AbstractUser):
    """Replaces Django's own user model."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
