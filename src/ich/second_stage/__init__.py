"""The scan as a sequence: models that read the first stage's predictions; read `train` first."""
