"""What travels between the coordinator and its device processes.

``frames`` (one message), ``blobs`` (one large body in chunks), ``session`` (one connection) and ``exchange`` (all the
connections of a coordinator) take values and return values; ``bus`` and ``line`` open the sockets, ``curve`` secures
them with what ``keys`` holds.
"""
