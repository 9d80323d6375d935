"""From the archive to PNGs and the slice table, and back; read `convert` first."""
