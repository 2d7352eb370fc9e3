"""Task switches (SDM vol. 3, ch. 8)."""

from ..build import Group

group = Group("task", __name__)
