"""Recipes for `teachonce train --config`, one TOML a file. Read through `teachonce.config`."""
