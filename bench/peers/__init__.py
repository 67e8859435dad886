"""What a user would take instead of kvtier, each in its strongest form, behind one protocol. One file a peer.

A peer is opened, given blocks, asked for them, and closed, in a process of its own (:mod:`bench.peers.worker`), so that
one that is not installed, fails or crashes costs its own row only (:mod:`bench.peers.fleet`). What a peer does not do
is in its :class:`bench.peers.peer.Facts`, and tests hold it to that. LMCache is measured by its own benchmark
(:mod:`bench.peers.lmcache`). What no peer could beat is measured in the same way (:mod:`bench.peers.limits`).
"""
