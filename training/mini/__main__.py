"""python -m training.mini: builds the bundled mini model, stage by stage (see --help)."""
