"""The generated parts of `docs/`: made from the code they describe, spliced into written pages.

`make docs` writes them; `tests/docs` fails when one is stale. A page says where a part goes with
a pair of comments, `<!-- generated: NAME -->` and `<!-- end of NAME -->`; everything outside of
them is written by hand and left alone.
"""
