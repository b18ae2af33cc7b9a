"""``python -m mmvit`` prints what an issue should say of the environment."""

from mmvit.environment import report

print(report())
