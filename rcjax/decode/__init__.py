"""Generation with a key/value cache: greedy or sampled, batched continuously, on one device or a mesh.

``weights`` lays the parameters out for it, ``forward`` computes with them, ``sampling`` picks tokens, ``engine`` runs
the rows.
"""

from rcjax.decode.engine import generate

__all__ = ["generate"]
