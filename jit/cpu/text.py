"""The SSE4.2 string comparisons."""

from ..build import Group

group = Group("text", __name__)
