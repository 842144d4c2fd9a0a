"""Files that are whole or absent, locks, and what files hold: JSON, TOML and tensors."""
