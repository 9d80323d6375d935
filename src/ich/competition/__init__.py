"""The challenge's labels, folds, metric and submission; read `labels` first."""
