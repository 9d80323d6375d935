"""Networks and how they learn; read `backbones` first."""
