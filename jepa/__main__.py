"""`python -m jepa` is the command `jepa`"""
from .cli import app

app()
