"""The page Data: datasets and their import, rows, what the model sees."""

from studio.web.pages.data.datasets import router

__all__ = ["router"]
