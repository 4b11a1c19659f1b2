"""Predicts training: workload, machines, collectives, memory and step time. It runs nothing and never imports torch."""
