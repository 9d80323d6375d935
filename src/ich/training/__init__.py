"""One run: train, resume, predict; read `fold` first."""
