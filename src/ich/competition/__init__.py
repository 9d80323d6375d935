"""What the challenge defines: labels, folds, the metric, the submission; read `labels` first."""
