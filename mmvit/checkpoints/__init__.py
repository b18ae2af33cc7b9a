"""Checkpoint files: reading them safely, converting the official ones, loading weights completely, writing."""
