"""SSE floating-point arithmetic and comparison."""

from ..build import Group

group = Group("sse_float", __name__)
