"""Hosts of a shaped network on one machine: network namespaces joined by a switch that limits rate and adds delay."""
