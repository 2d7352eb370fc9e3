"""AES, PCLMULQDQ and SHA."""

from ..build import Group

group = Group("crypto", __name__)
