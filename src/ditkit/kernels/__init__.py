"""Operations that are written in several ways, because one is quicker on one device and another on another.

Each is a plain function with one meaning, whatever way is taken; the ways differ by rounding. Networks (`ditkit.nn`,
`ditkit.backbones`) are written in these functions and ask no device themselves.
"""
