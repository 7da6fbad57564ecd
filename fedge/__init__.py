"""fedge: docker compose for federations of edge devices."""

__version__ = "0.1.0"
