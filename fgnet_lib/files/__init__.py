"""Files: the formats of volumes, atomic writes, locks."""
