"""Pages and pictures of results; read `report` first."""
