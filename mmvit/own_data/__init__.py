"""From a folder of labelled images to a config that trains on them (tools/new_project.py)."""
