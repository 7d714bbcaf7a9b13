"""The ledger: money rules, storage in SQLite or PostgreSQL, migrations, proof and export."""
