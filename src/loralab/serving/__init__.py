"""Using adapters: generation with a base model and adapters that come and go."""
