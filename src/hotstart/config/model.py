"""ModelConfig: strict reading of a checkpoint's config.json."""
