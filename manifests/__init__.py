"""The contract: configuration, identities, tables, class dictionaries and scene lists that both sides agree on."""
