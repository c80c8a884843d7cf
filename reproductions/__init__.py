"""Claims of published methods, measured again: one file a paper, known by its place in this folder."""

from reproductions.framework import Claim, Reproduction, at_least, at_most, find, reproduction, reproductions, run

__all__ = ["Claim", "Reproduction", "at_least", "at_most", "find", "reproduction", "reproductions", "run"]
