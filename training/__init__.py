import hyperlora  # noqa: F401  before torch, for what it sets
