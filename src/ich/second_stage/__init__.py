"""The second stage, which reads a scan as a sequence of the first stage's predictions; read `train` first."""
