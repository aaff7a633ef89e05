"""Bytes and ids; knows no model."""

from jtok.text.vocabulary import Vocabulary

__all__ = ["Vocabulary"]
