"""Far CALL, JMP and RET, call gates, LES and company (SDM vol. 2; vol. 3, ch. 5)."""

from ..build import Group

group = Group("far", __name__)
