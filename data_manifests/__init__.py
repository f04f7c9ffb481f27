"""What a data set must be, never the data: one TOML manifest a file. Read through `teachonce.manifests`."""
