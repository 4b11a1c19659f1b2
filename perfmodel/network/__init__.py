"""The network: fabrics, ranks on them, collectives as message schedules, and what those cost. It runs nothing."""
