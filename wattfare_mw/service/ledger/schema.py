"""The tables of the ledger. Amounts are integers of nano-dollars. Secrets are stored as hashes.

A change here needs a migration in ``migrations/versions``. A test checks that both agree.

``sqlite_with_rowid=False`` stores the rows that each call writes inside the index of their primary
key.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    false,
    text,
)

metadata = MetaData()

#: The scope of the operator's totals for the calls of all apps.
ALL_APPS = ""
#: The ``expires_at`` of a revoked grant, whose calls in flight are cut off.
TAKEN_BACK = 0

# SQLite numbers rows automatically only if the type of the column is INTEGER.
_COUNTER = BigInteger().with_variant(Integer, "sqlite")

apps = Table(
    "apps",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(256), nullable=False),
    Column("mode", String(8), nullable=False),
    Column("secret_hash", String(64), nullable=False),
    Column("publishable_key", String(256), nullable=False, unique=True),
    Column("created_at", BigInteger, nullable=False),
    # The older secret key, while two are valid.
    Column("other_secret_hash", String(64)),
    Column("deleted_at", BigInteger),
)

# The origins of an app. A browser returns from an approval to these only.
app_origins = Table(
    "app_origins",
    metadata,
    Column("app_id", String(64), ForeignKey("apps.id"), primary_key=True),
    Column("origin", String(300), primary_key=True),
)

settings = Table(
    "settings",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

connections = Table(
    "connections",
    metadata,
    Column("app_id", String(64), ForeignKey("apps.id"), primary_key=True),
    Column("user_id", String(256), primary_key=True),
    Column("cap_nanos", BigInteger),
    Column("connected", Boolean, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
    Column("revocations", BigInteger, nullable=False, server_default="0"),
    # The person whose budget it is; "" for none, as in a test app.
    Column("payer_id", String(64), nullable=False, server_default=""),
    # The funding that pays; NULL for the operator's key, or the built-in model.
    Column("funding_id", String(64)),
    Index("connections_by_payer", "payer_id"),
    sqlite_with_rowid=False,
)

# All connections of each payer, including those that have ended. ``connections`` has only the
# current connection of each user.
payer_connections = Table(
    "payer_connections",
    metadata,
    Column("payer_id", String(64), primary_key=True),
    Column("app_id", String(64), ForeignKey("apps.id"), primary_key=True),
    Column("user_id", String(256), primary_key=True),
    Column("account_label", String(256)),
    Column("cap_nanos", BigInteger),
    Column("connected_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("ended", String(16)),  # revoked, replaced or removed
    Index("payer_connections_by_user", "app_id", "user_id"),
)

# Totals and reservations have no foreign key to the apps, because each row belongs to a connection,
# a grant or a row of the ledger, which have one.
totals = Table(
    "totals",
    metadata,
    Column("app_id", String(64), primary_key=True),
    Column("user_id", String(256), primary_key=True),
    Column("payer_id", String(64), primary_key=True),
    Column("month", String(7), primary_key=True),
    Column("billed_nanos", BigInteger, nullable=False),
    Column("reserved_nanos", BigInteger, nullable=False),
    CheckConstraint("billed_nanos >= 0", name="totals_billed"),
    CheckConstraint("reserved_nanos >= 0", name="totals_reserved"),
    sqlite_with_rowid=False,
)

# The totals that count towards the operator's ceilings: one row for each app, one for all apps.
operator_totals = Table(
    "operator_totals",
    metadata,
    Column("scope", String(64), primary_key=True),
    Column("month", String(7), primary_key=True),
    Column("billed_nanos", BigInteger, nullable=False),
    Column("reserved_nanos", BigInteger, nullable=False),
    CheckConstraint("billed_nanos >= 0", name="operator_totals_billed"),
    CheckConstraint("reserved_nanos >= 0", name="operator_totals_reserved"),
    sqlite_with_rowid=False,
)

grants = Table(
    "grants",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("app_id", String(64), ForeignKey("apps.id"), nullable=False),
    Column("requests_left", Integer, nullable=False),
    Column("cap_nanos", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("billed_nanos", BigInteger, nullable=False),
    Column("reserved_nanos", BigInteger, nullable=False),
    Column("payer_id", String(64), nullable=False, server_default=""),
    Column("funding_id", String(64)),
    CheckConstraint("requests_left >= 0", name="grants_requests"),
    CheckConstraint("billed_nanos + reserved_nanos <= cap_nanos", name="grants_cap"),
    Index("grants_by_expiry", "app_id", "expires_at", "cap_nanos"),
    Index("grants_by_payer", "payer_id"),
)

# The processes that hold calls, and the end of their leases in milliseconds. In PostgreSQL, this is
# a time since 1970 by the clock of the database. In SQLite, it is a time since the machine's boot
# with this id.
holders = Table(
    "holders",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("boot", String(64), nullable=False, server_default=""),
    sqlite_with_rowid=False,
)

# Calls in flight. Each belongs to a user or a grant, and to one process, its holder. If the holder
# has died, any process may settle the call.
reservations = Table(
    "reservations",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("app_id", String(64), nullable=False),
    Column("user_id", String(256)),
    Column("grant_hash", String(64)),
    Column("month", String(7), nullable=False),
    Column("model", String(256), nullable=False),
    Column("reserved_nanos", BigInteger, nullable=False),
    Column("reserved_at", BigInteger, nullable=False),
    Column("request_id", String(128), nullable=False),
    Column("holder", String(64), nullable=False, server_default=""),
    Column("stream", Boolean, nullable=False, server_default=false()),
    Column("revocations", BigInteger, nullable=False, server_default="0"),
    Column("metered_nanos", BigInteger, nullable=False, server_default="0"),
    Column("prompt_tokens", BigInteger, nullable=False, server_default="0"),
    Column("completion_tokens", BigInteger, nullable=False, server_default="0"),
    # The provider's id of this stream, with which the service can ask for its cost.
    Column("generation_id", String(128)),
    # True if the cost has no bound, so that the reservation is not an estimate of the cost.
    Column("unbounded", Boolean, nullable=False, server_default=false()),
    Column("payer_id", String(64), nullable=False, server_default=""),
    Column("funding_id", String(64)),
    # True if the call counts towards the operator's ceilings.
    Column("operator", Boolean, nullable=False, server_default=false()),
    CheckConstraint("(user_id IS NULL) <> (grant_hash IS NULL)", name="reservations_payer"),
    Index("reservations_by_holder", "holder"),
    sqlite_with_rowid=False,
)

# The call that an Idempotency-Key identifies. The content of the call is not stored.
idempotency = Table(
    "idempotency",
    metadata,
    Column("app_id", String(64), ForeignKey("apps.id"), primary_key=True),
    Column("payer", String(300), primary_key=True),
    Column("key_hash", String(64), primary_key=True),
    Column("body_hash", String(64), nullable=False),
    Column("reservation_id", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index("idempotency_by_age", "created_at"),
    Index("idempotency_by_call", "reservation_id"),
)

# Append-only, by triggers: one row for each call that has ended, and another if it is corrected.
ledger = Table(
    "ledger",
    metadata,
    Column("id", _COUNTER, primary_key=True, autoincrement=True),
    Column("reservation_id", String(64), nullable=False),
    Column("reserved_at", BigInteger, nullable=False),
    Column("settled_at", BigInteger, nullable=False),
    Column("app_id", String(64), ForeignKey("apps.id"), nullable=False),
    Column("user_id", String(256)),
    Column("grant_hash", String(64)),
    Column("month", String(7), nullable=False),
    Column("model", String(256), nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("reserved_nanos", BigInteger, nullable=False),
    Column("billed_nanos", BigInteger, nullable=False),
    Column("claimed_nanos", BigInteger),  # the cost that the upstream reports; it may be higher
    Column("ended", String(32), nullable=False),
    Column("request_id", String(128), nullable=False),
    # The row that this row corrects. The billed amount is the difference, and may be negative.
    Column("corrects", _COUNTER, ForeignKey("ledger.id"), unique=True),
    Column("payer_id", String(64), nullable=False, server_default=""),
    Column("funding_id", String(64)),
    Column("operator", Boolean, nullable=False, server_default=false()),
    CheckConstraint("billed_nanos >= 0 OR corrects IS NOT NULL", name="ledger_billed"),
    CheckConstraint("billed_nanos <= reserved_nanos", name="ledger_within_reservation"),
    Index(
        "ledger_once",
        "reservation_id",
        unique=True,
        sqlite_where=text("corrects IS NULL"),
        postgresql_where=text("corrects IS NULL"),
    ),
    # The query has the same condition. Calls without a payer are not in this index.
    Index(
        "ledger_by_payer",
        "payer_id",
        "settled_at",
        sqlite_where=text("payer_id <> ''"),
        postgresql_where=text("payer_id <> ''"),
    ),
)

# People with a passkey. The row stays when their data is deleted.
payers = Table(
    "payers",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("created_at", BigInteger, nullable=False),
    Column("deleted_at", BigInteger),
)

passkeys = Table(
    "passkeys",
    metadata,
    Column("credential_id", Text, primary_key=True),  # base64url
    Column("payer_id", String(64), ForeignKey("payers.id"), nullable=False),
    Column("public_key", LargeBinary, nullable=False),
    Column("sign_count", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("last_used_at", BigInteger, nullable=False),
    Index("passkeys_by_payer", "payer_id"),
)

recovery_codes = Table(
    "recovery_codes",
    metadata,
    Column("payer_id", String(64), ForeignKey("payers.id"), primary_key=True),
    Column("code_hash", String(64), primary_key=True),
    Column("used_at", BigInteger),
    Index("recovery_codes_by_hash", "code_hash"),
)

# The browsers in which a payer is signed in. ``fresh_at``: the last proof by passkey or code.
sign_ins = Table(
    "sign_ins",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("payer_id", String(64), ForeignKey("payers.id"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("fresh_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Index("sign_ins_by_payer", "payer_id"),
    Index("sign_ins_by_expiry", "expires_at"),
)

# The challenges that passkeys sign. Each is used once.
challenges = Table(
    "challenges",
    metadata,
    Column("id_hash", String(64), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("challenge", LargeBinary, nullable=False),
    Column("payer_id", String(64)),
    Column("expires_at", BigInteger, nullable=False),
    Index("challenges_by_expiry", "expires_at"),
)

# The approval requests. An approval has expired once ``expires_at`` has passed.
approvals = Table(
    "approvals",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),  # connection or grant
    Column("app_id", String(64), ForeignKey("apps.id"), nullable=False),
    Column("user_id", String(256)),
    Column("epoch", BigInteger, nullable=False),
    Column("origin", String(300), nullable=False),
    Column("return_url", Text, nullable=False),
    Column("account_label", String(256)),
    Column("asked_nanos", BigInteger),
    Column("asked_unlimited", Boolean, nullable=False),
    Column("requests", Integer),
    Column("secret_hash", String(64), nullable=False),
    Column("code_hash", String(64)),
    Column("state", String(16), nullable=False),  # pending, approved, denied or redeemed
    Column("payer_id", String(64)),
    Column("cap_nanos", BigInteger),
    Column("unlimited", Boolean, nullable=False),
    Column("funding_id", String(64)),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("decided_at", BigInteger),
    Column("left_at", BigInteger),  # NULL while a person may have its page open
    # The other payer whose connection ends. The page showed it to the person who allowed this.
    Column("replaces", String(64)),
    Index("approvals_by_expiry", "expires_at"),
)

# The funding of payers. An id is never used again, and its key never changes.
funding = Table(
    "funding",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("payer_id", String(64), nullable=False),
    Column("kind", String(16), nullable=False),  # openrouter or key
    Column("upstream", Text, nullable=False),
    Column("label", String(256), nullable=False),
    Column("ciphertext", LargeBinary),  # NULL once it is removed
    Column("encryption_key_id", String(64)),
    Column("state", String(16), nullable=False),  # valid, invalid or removed
    Column("limit_nanos", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("checked_at", BigInteger, nullable=False),
    Index("funding_by_payer", "payer_id"),
)

# An exchange with OpenRouter that has begun. Each is used once.
funding_requests = Table(
    "funding_requests",
    metadata,
    Column("state_hash", String(64), primary_key=True),
    Column("payer_id", String(64), nullable=False),
    Column("cookie_hash", String(64), nullable=False),
    Column("verifier", LargeBinary, nullable=False),  # encrypted
    Column("limit_nanos", BigInteger),
    Column("return_to", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Index("funding_requests_by_expiry", "expires_at"),
)
