"""The ledger: rules about money, storage in SQLite or PostgreSQL, migrations, verification and
export."""
